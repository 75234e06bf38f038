/** What a joined overlay is to those who join it. */
import type { Dataplane, DataplaneStats } from '../dataplane/dataplane.js';
import type { PeerProbe } from '../dataplane/probes.js';
import type { FirewallStats } from '../host/firewall/firewall.js';
import type { SelectedInterface } from '../host/select-interface.js';
import type { HostState } from './host-watch.js';
import type { LeaseCounts } from './lease-counts.js';
import type { StoreState } from './lease-keeper.js';
import type { Lease } from './lease.js';
import type { NetworkConfig } from './network-config.js';

/**
 * `routed`: its subnets are sent to that host. `refused`: the lease makes no sense. `ignored`: another backend's.
 * `failed`: the route could not be set.
 */
export type LeaseState = 'routed' | 'refused' | 'ignored' | 'failed';

/** Another host's lease and what became of it. */
export interface OverlayLease {
  /** Where the kernel carries the packets: answers to probes, and when the host was last heard. */
  readonly probe?: PeerProbe;
  readonly lastHeardMs?: number;
  readonly lease: Lease;
  readonly state: LeaseState;
  /** Why it is not routed; one line. */
  readonly reason?: string;
}

export interface OverlayStatus {
  readonly network: NetworkConfig;
  readonly interface: SelectedInterface;
  readonly lease: Lease;
  /** False while the store says that the lease is gone; its subnet is served on. */
  readonly leaseHeld: boolean;
  readonly device: string;
  /** The device of IPv6 packets, where it is another one. */
  readonly device6?: string | undefined;
  /** Overlay MTU in bytes. */
  readonly mtu: number;
  /** Undefined when none was asked for. */
  readonly subnetFile: { readonly path: string; readonly written: boolean } | undefined;
  readonly leases: readonly OverlayLease[];
  /** What has happened to our lease and to the others' since the start. */
  readonly counts: LeaseCounts;
  /** What is watched on this host, and what was put right. */
  readonly host: HostState;
  /** What the backend set up. */
  readonly facts: Readonly<Record<string, unknown>>;
  /** Undefined where the kernel carries the packets. */
  readonly dataplane: DataplaneStats | undefined;
  /** Absent when no rules were asked for. */
  readonly firewall?: FirewallStats;
  /** `tableOf`: the store is away since the start, and leases come from the table saved at that time. */
  readonly store: StoreState & { readonly tableOf?: Date };
}

export interface CloseOptions {
  /** Give the lease back. */
  readonly release?: boolean;
  /** Leave nothing in the kernel either where it carries the packets: another backend comes in its place. */
  readonly dismantle?: boolean;
}

export interface Overlay extends AsyncDisposable {
  readonly network: NetworkConfig;
  /** What is in use now: its address and MTU are followed. */
  readonly interface: SelectedInterface;
  /**
   * The user-space engine; undefined where the kernel carries the packets. Another one from the moment on that it had
   * to be opened again.
   */
  readonly dataplane: Dataplane | undefined;
  /** The lease that this host serves now. */
  readonly lease: Lease;
  /** Resolves after {@link close}; rejects when the data plane has failed for good. Faults of the store do neither. */
  readonly closed: Promise<void>;
  status(): OverlayStatus;
  /**
   * Chooses the underlay again and follows another one, and writes the subnet file again, for one that somebody has
   * changed or removed.
   *
   * @throws {PodwireError} `SYSTEM` when the file cannot be written.
   */
  refresh(): Promise<void>;
  /**
   * Stops forwarding, removes device, addresses and routes, and stops renewing. The lease stays this host's until it
   * expires, and the subnet file and the firewall rules stay; with `release` the lease is given back. May be called twice.
   */
  close(options?: CloseOptions): Promise<void>;
}
