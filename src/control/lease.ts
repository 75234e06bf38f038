/**
 * Leases: which host owns which subnet, and the interface of every store that keeps them.
 *
 * Words: a *lease* gives a subnet to a host until it expires; a *reservation* is a lease without expiry, kept for
 * the host with its PublicIP; a *store* is where leases live (a directory, etcd); to *acquire* is to get a
 * lease, to *renew* to prolong it, to *release* to give it back.
 */
import type { Address, Prefix } from '../net/prefix.js';
import type { NetworkConfig } from './network-config.js';

/** What a host tells its peers about itself; flannel's `LeaseAttrs`. */
export interface LeaseAttributes {
  /** IPv4 underlay address for the peers' packets; 0.0.0.0 where a host has none. */
  readonly publicIp: Address;
  readonly publicIpv6?: Address;
  /** `'vxlan'`, `'host-gw'`, …; `''` for udp and alloc. */
  readonly backendType: string;
  /** What the backend's peers need, as JSON values (vxlan: VNI and VtepMAC). */
  readonly backendData?: unknown;
  readonly backendV6Data?: unknown;
  /** UDP port of this host's tunnel where it is not the network's. podwire's own: flanneld's peers do not see it. */
  readonly port?: number;
}

/** What a lease gives to its host. */
export interface LeaseSubnets {
  /** The IPv4 subnet, or the IPv6 subnet of an IPv6-only lease. */
  readonly subnet: Prefix;
  /** The IPv6 subnet of a dual-stack lease. */
  readonly subnet6?: Prefix;
}

export interface Lease extends LeaseSubnets {
  readonly attributes: LeaseAttributes;
  /** Absent: a reservation. */
  readonly expiresAt?: Date;
  /** The agent that holds it, where it said so; see {@link AcquireRequest.owner}. */
  readonly owner?: string;
  /** From this host's own lease table, because the store is away: `renew` it as soon as the store is back. */
  readonly unconfirmed?: true;
}

/**
 * What {@link LeaseStore.watch} reports. Leases held through the same store object are never among `snapshot`,
 * `added` and `removed`; what happens to them is an `own` change.
 */
export type LeaseChange =
  /** All leases of other hosts. Always the first change; a later one replaces everything before it. */
  | { readonly kind: 'snapshot'; readonly leases: readonly Lease[] }
  /** A new lease, or a known one with new attributes or a new expiry. */
  | { readonly kind: 'added'; readonly lease: Lease }
  /** Released or expired, with its last known attributes. */
  | { readonly kind: 'removed'; readonly lease: Lease }
  /** `lost`: our lease is gone (`lease` is what we held). `replaced`: another host has it (`lease` is theirs). */
  | { readonly kind: 'own'; readonly state: 'lost' | 'replaced'; readonly lease: Lease };

export interface AcquireRequest {
  readonly attributes: LeaseAttributes;
  /** What this host had before, from `subnet.env`. */
  readonly previous?: { readonly subnet?: Prefix; readonly subnet6?: Prefix };
  /** Pods live in `previous` at this moment, so it goes before any other lease of ours (which flannel takes first). */
  readonly isServing?: boolean;
  /**
   * Names this agent and no other, the same across its restarts. A lease with this owner is ours even when our
   * PublicIP has changed, one with another owner is not ours even when it has our PublicIP; so it must not be
   * something that cloned machines share, such as a bare machine id.
   */
  readonly owner?: string;
  /** Life of the lease in milliseconds; default 24 hours, flannel's constant. */
  readonly ttlMs?: number;
}

/** Something an operator should hear once; the store itself goes on. */
export type StoreNotice =
  /** The watch cannot read the store; known leases stay as they are. Said once until it is `up` again. */
  | { readonly kind: 'down'; readonly reason: string; readonly error: unknown }
  | { readonly kind: 'up'; readonly reason: string }
  /** An entry that is no lease by its name: skipped. Said again when it changes. */
  | { readonly kind: 'foreign'; readonly path: string; readonly reason: string }
  /** A lease whose value cannot be read: its last good value stays in force. Said again when it changes. */
  | { readonly kind: 'corrupt'; readonly path: string; readonly reason: string }
  /** Another live agent uses our PublicIP or owner name. */
  | { readonly kind: 'conflict'; readonly lease: Lease; readonly reason: string }
  /** The store works, but slower or with less than it should. */
  | { readonly kind: 'degraded'; readonly reason: string };

/**
 * Where leases live. Every method that throws, throws a PodwireError: `STORE_UNAVAILABLE` (try again later),
 * `PERMISSION` (the store refuses who we are), `NO_CONFIG`, `INVALID_CONFIG`, `OUT_OF_SUBNETS`, `LEASE_LOST`,
 * `INVALID_ARGUMENT`, `UNSUPPORTED`, `ABORTED`, `CLOSED`.
 */
export interface LeaseStore extends AsyncDisposable {
  /** For messages and status: `directory /var/lib/podwire`. */
  readonly description: string;
  /** The network config as it is now; does not wait for one to appear. */
  network(signal?: AbortSignal): Promise<NetworkConfig>;
  /** Our own lease, else our previous subnet, else a free one. A race lost to another host is tried again. */
  acquire(request: AcquireRequest, signal?: AbortSignal): Promise<Lease>;
  /**
   * Prolongs a lease that is still ours and writes its attributes; a reservation stays one.
   * @throws PodwireError LEASE_LOST when it is gone or somebody else's.
   */
  renew(lease: Lease, signal?: AbortSignal): Promise<Lease>;
  /** Gives a lease back; a reservation stays in the store. One that is no longer ours is left alone. */
  release(lease: Lease): Promise<void>;
  /**
   * Follows all leases until `signal` aborts, through every outage of the store: what was reported stays true
   * until the store itself says otherwise.
   */
  watch(signal: AbortSignal): AsyncIterable<LeaseChange>;
  /** Calls back with every notice until the returned function is called. */
  onNotice?(listener: (notice: StoreNotice) => void): () => void;
  /** What operators do to this store; absent where it cannot be done from here. */
  readonly admin?: StoreAdmin;
  /** Counters since the store was opened, names in camel case; see {@link StoreMetrics}. */
  metrics?(): StoreMetrics;
}

/**
 * What a store counts about itself; which names there are is the store's business. `...SecondsTotal` are seconds, all
 * others numbers of events: `requests`, `requestErrors`, `requestSecondsTotal`, `reconnects` (a watch begun again),
 * `resyncs` (all leases read again because changes were missed), `skippedEvents` (entries that could not be read).
 */
export type StoreMetrics = Readonly<Record<string, number>>;

/**
 * What an operator does to a store, beside what agents do; agents hear of it through their watch. Every method throws
 * PodwireErrors: `STORE_UNAVAILABLE`, `PERMISSION`, `INVALID_ARGUMENT`, `ABORTED`, `CLOSED`, and what is said at each.
 */
export interface StoreAdmin {
  /**
   * All leases that can be read, our own included, in byte order of their keys. One without `expiresAt` is a
   * reservation; one that has run out may still be there, where nobody has taken its place.
   */
  list(signal?: AbortSignal): Promise<readonly Lease[]>;
  /**
   * Keeps a subnet for the host with the PublicIP of `attributes` (of an IPv6-only network, its PublicIPv6): a lease
   * without expiry. A live lease of that host becomes a reservation and keeps what its agent has written.
   *
   * @throws PodwireError LEASE_CONFLICT when another host holds an overlapping lease; INVALID_ARGUMENT when the
   * network would not hand out these subnets or peers could not use the address; NO_CONFIG, INVALID_CONFIG.
   */
  reserve(subnets: LeaseSubnets, attributes: LeaseAttributes): Promise<Lease>;
  /** Removes a lease or reservation, whoever holds it: a live agent acquires anew. False when there is none. */
  remove(subnets: LeaseSubnets): Promise<boolean>;
  /** The network config's text as it is, also when it is not valid; undefined when there is none. */
  readConfig(signal?: AbortSignal): Promise<string | undefined>;
  /** Writes the network config, unchanged. @throws PodwireError INVALID_CONFIG for one no agent could use. */
  writeConfig(json: string): Promise<void>;
}

/** flannel's constant, and the default life of a lease. */
export const DEFAULT_TTL_MS = 24 * 60 * 60 * 1000;

/** What a host is known by: its PublicIP, where it has none its PublicIPv6. */
export function publicAddress({ publicIp, publicIpv6 }: LeaseAttributes): Address {
  return publicIp.isUnspecified && publicIpv6 ? publicIpv6 : publicIp;
}

/** All subnets of a lease, IPv4 first. */
export function subnetsOf(lease: LeaseSubnets): Prefix[] {
  return lease.subnet6 ? [lease.subnet, lease.subnet6] : [lease.subnet];
}

export function sameSubnets(a: LeaseSubnets, b: LeaseSubnets): boolean {
  if (!a.subnet.equals(b.subnet)) return false;
  return a.subnet6 && b.subnet6 ? a.subnet6.equals(b.subnet6) : a.subnet6 === b.subnet6;
}

/** The subnets of `from` that `to` has not. */
export function departing(from: LeaseSubnets, to: LeaseSubnets): Prefix[] {
  const after = subnetsOf(to);
  return subnetsOf(from).filter((old) => !after.some((subnet) => subnet.equals(old)));
}

export function overlap(a: LeaseSubnets, b: LeaseSubnets): boolean {
  return subnetsOf(a).some((mine) => subnetsOf(b).some((theirs) => mine.overlaps(theirs)));
}

/** Whether `lease` has run out at `nowMs`, with `skewMs` to spare for hosts whose clocks differ. */
export function isExpired(lease: Pick<Lease, 'expiresAt'>, nowMs: number, skewMs = 0): boolean {
  return lease.expiresAt !== undefined && lease.expiresAt.getTime() + skewMs <= nowMs;
}

/**
 * Whether a lease found in the store belongs to the agent with this identity. Two owner names decide where both
 * are there; else the PublicIP does, as in flannel.
 */
export function belongsTo(
  lease: Pick<Lease, 'owner' | 'attributes'>,
  identity: { readonly owner?: string | undefined; readonly attributes: LeaseAttributes },
): boolean {
  if (lease.owner !== undefined && identity.owner !== undefined) return lease.owner === identity.owner;
  return sameHost(lease.attributes, identity.attributes);
}

/** flannel's identity of a host: its PublicIP, or without one (IPv6 alone) its PublicIPv6. */
export function sameHost(a: LeaseAttributes, b: LeaseAttributes): boolean {
  if (!a.publicIp.equals(b.publicIp)) return false;
  // IPv6-only hosts all say 0.0.0.0; flannel takes them for one host.
  if (!b.publicIp.isUnspecified) return true;
  return a.publicIpv6 !== undefined && b.publicIpv6 !== undefined && a.publicIpv6.equals(b.publicIpv6);
}
