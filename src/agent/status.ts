/**
 * What the agent tells about itself: the JSON of `GET /v1/status`, and its readable form.
 */
import type { DataplaneStats, FirewallStats, LeaseState, OverlayStatus, PeerProbe } from '../index.js';

export interface AgentStatus {
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
  };
  readonly device: { readonly name: string; readonly mtu: number };
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
    readonly backendType: string;
    /** `routed`, or why not. */
    readonly state: LeaseState;
    readonly reason?: string;
    /** Where the kernel carries the packets; else they are the peer's in `dataplane`. */
    readonly probe?: PeerProbe;
    readonly lastHeardMs?: number;
  }[];
  /** Absent where the kernel carries the packets. */
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
  const { network, lease } = overlay;
  return {
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
    },
    device: { name: overlay.device, mtu: overlay.mtu },
    ...(overlay.subnetFile === undefined ? {} : { subnetFile: overlay.subnetFile }),
    host: hostStatus(overlay.host),
    leases: overlay.leases.map((entry) => ({
      subnet: entry.lease.subnet.toString(),
      ...(entry.lease.subnet6 === undefined ? {} : { subnet6: entry.lease.subnet6.toString() }),
      publicIp: entry.lease.attributes.publicIp.toString(),
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

/** The status as a person reads it: a few lines, then one table of peers. */
export function formatStatus(status: AgentStatus, now: Date = new Date()): string {
  const { lease, device, store, dataplane } = status;
  const lines = [
    `podwire ${status.version}  pid ${status.pid}  up ${formatDuration(now.getTime() - Date.parse(status.startedAt))}`,
    `network    ${status.network}${status.network6 === undefined ? '' : ` ${status.network6}`}  backend ${status.backend}`,
    `lease      ${lease.subnet}${lease.subnet6 === undefined ? '' : ` ${lease.subnet6}`}  public ${lease.publicIp}  ${formatExpiry(lease, now)}`,
    `device     ${device.name}  mtu ${device.mtu}  over ${status.interface.name} ${status.interface.address} mtu ${status.interface.mtu} (${status.interface.why})`,
    `store      ${store.description}  ${store.ok ? 'ok' : `FAILING: ${store.lastError ?? 'unknown'}`}${store.tableOf === undefined ? '' : `; forwarding by the lease table of ${store.tableOf}`}`,
    ...(status.firewall === undefined ? [] : [`firewall   ${formatFirewall(status.firewall)}`]),
    ...status.host.problems.map((problem) => `PROBLEM    ${problem}`),
    ...(dataplane === undefined ? ['packets    carried by the kernel'] : formatEngine(dataplane)),
    '',
    ...formatPeers(status),
  ];
  return `${lines.join('\n')}\n`;
}

function formatEngine(dataplane: DataplaneStats): string[] {
  return [
    `workers    ${dataplane.workers.map((worker) => `${worker.state}${worker.restarts > 0 ? ` (${worker.restarts} restarts)` : ''}`).join(', ')}`,
    `packets    ${formatTraffic(dataplane)}`,
    `drops      ${formatDrops(dataplane)}`,
  ];
}

function formatFirewall(firewall: FirewallStats): string {
  const features = [firewall.masquerade ? 'masquerade' : '', firewall.forward ? 'forward' : ''].filter(Boolean);
  const watched = firewall.watch === 'periodic' ? `  checked every ${formatDuration(firewall.resyncMs)}` : '';
  return [
    firewall.manager,
    `  ${features.length === 0 ? 'no rules' : features.join(', ')}`,
    firewall.admittedIn.length === 0 ? '' : `  accepts in ${firewall.admittedIn.join(', ')}`,
    watched,
    firewall.repairs === 0 ? '' : `  repaired ${firewall.repairs} times`,
    firewall.lastError === undefined ? '' : `  FAILING: ${firewall.lastError}`,
  ].join('');
}

function formatExpiry(lease: AgentStatus['lease'], now: Date): string {
  if (!lease.held) return 'LOST, acquiring again';
  if (lease.expiresAt === undefined) return 'reserved';
  const left = Date.parse(lease.expiresAt) - now.getTime();
  return left > 0 ? `expires in ${formatDuration(left)}` : `EXPIRED ${formatDuration(-left)} ago`;
}

function formatTraffic({ totals }: DataplaneStats): string {
  return (
    `out ${totals.egressPackets} (${formatBytes(totals.egressBytes)})  ` +
    `in ${totals.ingressPackets} (${formatBytes(totals.ingressBytes)})`
  );
}

function formatDrops({ totals }: DataplaneStats): string {
  const drops = Object.entries(totals).filter(([name, count]) => name.startsWith('drop') && count > 0);
  return drops.length === 0 ? 'none' : drops.map(([name, count]) => `${name} ${count}`).join('  ');
}

function formatPeers(status: AgentStatus): string[] {
  const counters = new Map((status.dataplane?.peers ?? []).map((peer) => [peer.address, peer]));
  const rows = status.leases.map((lease) => {
    const peer = counters.get(lease.publicIp);
    return [
      lease.publicIp,
      lease.subnet6 === undefined ? lease.subnet : `${lease.subnet} ${lease.subnet6}`,
      String(peer?.txPackets ?? 0),
      formatBytes(peer?.txBytes ?? 0),
      String(peer?.rxPackets ?? 0),
      formatBytes(peer?.rxBytes ?? 0),
      peer === undefined || peer.pathMtu === 0 ? '-' : String(peer.pathMtu),
      lease.reason === undefined ? lease.state : `${lease.state}: ${lease.reason}`,
    ];
  });
  if (rows.length === 0) return ['no other host has a lease'];
  return table([['PEER', 'SUBNET', 'OUT', '', 'IN', '', 'PATH MTU', 'STATE'], ...rows]);
}

function table(rows: readonly (readonly string[])[]): string[] {
  const widths = (rows[0] ?? []).map((_, column) => Math.max(...rows.map((row) => row[column]?.length ?? 0)));
  return rows.map((row) =>
    row
      .map((cell, column) => cell.padEnd(widths[column] ?? 0))
      .join('  ')
      .trimEnd(),
  );
}

/** `1.5 GiB`; bytes below 1 KiB as they are. */
export function formatBytes(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${unit === 0 ? value : value.toFixed(1)} ${units[unit]}`;
}

/** The largest unit and the next: `3d 4h`, `2h`, `59m 2s`, `5s`. */
export function formatDuration(ms: number): string {
  let seconds = Math.max(0, Math.floor(ms / 1000));
  const parts: string[] = [];
  for (const [unit, size] of [
    ['d', 86_400],
    ['h', 3_600],
    ['m', 60],
    ['s', 1],
  ] as const) {
    const count = Math.floor(seconds / size);
    seconds -= count * size;
    const isNext = parts.length === 1;
    if (count > 0 || (unit === 's' && !isNext)) parts.push(`${count}${unit}`);
    if (isNext) break;
  }
  return parts.join(' ');
}
