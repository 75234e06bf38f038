/**
 * What the agent tells about itself: the JSON of `GET /v1/status` and of `podwire status --json`. Fields are added to it,
 * never changed or taken away, as long as `schema` stays.
 */
import type { DataplaneStats, FirewallStats, LeaseState, OverlayStatus, PeerProbe } from '../index.js';

export const STATUS_SCHEMA = 'podwire-status/1';

export interface AgentStatus {
  readonly schema: typeof STATUS_SCHEMA;
  readonly version: string;
  readonly pid: number;
  /** ISO 8601. */
  readonly startedAt: string;
  /** Backend of the network config: `udp`. */
  readonly backend: string;
  /** The pod network in CIDR form; of a dual-stack network the IPv4 one. */
  readonly network: string;
  readonly network6?: string;
  readonly interface: { readonly name: string; readonly address: string; readonly mtu: number; readonly why: string };
  readonly lease: {
    readonly subnet: string;
    readonly subnet6?: string;
    readonly publicIp: string;
    /** ISO 8601; absent for a reservation. */
    readonly expiresAt?: string;
    /** False while the store says that it is gone and a new one is being acquired. */
    readonly held: boolean;
    /** ISO 8601: when it was acquired, and when it was last acquired or renewed. */
    readonly acquiredAt?: string;
    readonly writtenAt?: string;
    /** Since the start of the agent. */
    readonly renewals: number;
    readonly renewFailures: number;
    readonly losses: number;
    /** The latest sign that another live host uses our identity. */
    readonly conflict?: string;
  };
  readonly device: { readonly name: string; readonly mtu: number };
  /** What the backend set up: port, offloads and the like; the names are the backend's. */
  readonly facts: Readonly<Record<string, unknown>>;
  readonly subnetFile?: { readonly path: string; readonly written: boolean };
  /** What is watched on this host. */
  readonly host: {
    /** Repairs of what somebody else changed, since the start, by kind. */
    readonly driftRepaired: Readonly<Record<string, number>>;
    readonly lastRepair?: { readonly at: string; readonly what: string };
    /** How often the data plane was opened again: its device was removed, or the underlay has changed. */
    readonly reopened: number;
    /** What is wrong, one line each: not ours to put right, refused by the kernel, or undone by somebody. */
    readonly problems: readonly string[];
    /** False while changes of the host are noticed late. */
    readonly eventsHeard: boolean;
  };
  /** The other hosts' leases. */
  readonly leases: readonly {
    readonly subnet: string;
    readonly subnet6?: string;
    readonly publicIp: string;
    readonly publicIpv6?: string;
    readonly backendType: string;
    /** `routed`, or why not. */
    readonly state: LeaseState;
    readonly reason?: string;
    /** Where the kernel carries the packets; else they are the peer's in `dataplane`. */
    readonly probe?: PeerProbe;
    readonly lastHeardMs?: number;
  }[];
  /** Absent where the kernel carries the packets. Its `peers` are hosts by `address`: the `publicIp(v6)` of their leases. */
  readonly dataplane?: DataplaneStats;
  readonly firewall?: FirewallStats;
  readonly store: {
    readonly description: string;
    readonly ok: boolean;
    readonly lastError?: string;
    /** ISO 8601: the store is away since the start, and leases come from the table saved at that time. */
    readonly tableOf?: string;
  };
}

/** @param process the agent's own facts. */
export function agentStatus(
  process: { readonly version: string; readonly pid: number; readonly startedAt: Date },
  overlay: OverlayStatus,
): AgentStatus {
  const { network, lease, counts } = overlay;
  return {
    schema: STATUS_SCHEMA,
    version: process.version,
    pid: process.pid,
    startedAt: process.startedAt.toISOString(),
    backend: network.backend.type,
    network: String(network.network ?? network.ipv6Network),
    ...(network.network !== undefined && network.ipv6Network !== undefined
      ? { network6: network.ipv6Network.toString() }
      : {}),
    interface: {
      name: overlay.interface.name,
      address: String(overlay.interface.address ?? overlay.interface.address6),
      mtu: overlay.interface.mtu,
      why: overlay.interface.why,
    },
    lease: {
      subnet: lease.subnet.toString(),
      ...(lease.subnet6 === undefined ? {} : { subnet6: lease.subnet6.toString() }),
      publicIp: lease.attributes.publicIp.toString(),
      ...(lease.expiresAt === undefined ? {} : { expiresAt: lease.expiresAt.toISOString() }),
      held: overlay.leaseHeld,
      ...(counts.acquiredAt === undefined ? {} : { acquiredAt: counts.acquiredAt.toISOString() }),
      ...(counts.writtenAt === undefined ? {} : { writtenAt: counts.writtenAt.toISOString() }),
      renewals: counts.renewed,
      renewFailures: counts.renewFailures,
      losses: counts.lost,
      ...(counts.lastConflict === undefined ? {} : { conflict: counts.lastConflict }),
    },
    device: { name: overlay.device, mtu: overlay.mtu },
    facts: overlay.facts,
    ...(overlay.subnetFile === undefined ? {} : { subnetFile: overlay.subnetFile }),
    host: hostStatus(overlay.host),
    leases: overlay.leases.map((entry) => ({
      subnet: entry.lease.subnet.toString(),
      ...(entry.lease.subnet6 === undefined ? {} : { subnet6: entry.lease.subnet6.toString() }),
      publicIp: entry.lease.attributes.publicIp.toString(),
      ...(entry.lease.attributes.publicIpv6 === undefined
        ? {}
        : { publicIpv6: entry.lease.attributes.publicIpv6.toString() }),
      backendType: entry.lease.attributes.backendType,
      state: entry.state,
      ...(entry.reason === undefined ? {} : { reason: entry.reason }),
      ...(entry.probe === undefined ? {} : { probe: entry.probe }),
      ...(entry.lastHeardMs === undefined ? {} : { lastHeardMs: entry.lastHeardMs }),
    })),
    ...(overlay.dataplane === undefined ? {} : { dataplane: overlay.dataplane }),
    ...(overlay.firewall === undefined ? {} : { firewall: overlay.firewall }),
    store: storeStatus(overlay.store),
  };
}

function storeStatus({ tableOf, ...store }: OverlayStatus['store']): AgentStatus['store'] {
  return tableOf === undefined ? store : { ...store, ok: false, tableOf: tableOf.toISOString() };
}

function hostStatus(host: OverlayStatus['host']): AgentStatus['host'] {
  const { driftRepaired, lastRepair, reopened, problems, failing, fought, monitor } = host;
  return {
    driftRepaired,
    ...(lastRepair === undefined ? {} : { lastRepair: { at: lastRepair.at.toISOString(), what: lastRepair.what } }),
    reopened,
    problems: [...problems, ...failing, ...fought.map((what) => `somebody keeps undoing: ${what}`)],
    eventsHeard: monitor.running,
  };
}
