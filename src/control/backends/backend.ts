/**
 * A backend: one way from host to host. The overlay knows no more of it than this interface.
 *
 * Life: `open` (see table.ts; whatever can fail on this host fails before a lease is taken), `begin` (device,
 * addresses, routes of the own lease: from here on packets flow), then `setRoute`, `removeRoute`, `changeSubnet` in any
 * order, at last `close`. Routes may also come before `begin`: they take effect as soon as there is a device.
 */
import type { Dataplane, DataplaneOptions, DataplaneStats } from '../../dataplane/dataplane.js';
import type { Logger } from '../../dataplane/logger.js';
import type { Runner } from '../../host/exec.js';
import type { Guard } from '../../host/guard.js';
import type { SelectedInterface } from '../../host/select-interface.js';
import type { Address, Prefix } from '../../net/prefix.js';
import type { Lease, LeaseAttributes } from '../lease.js';
import type { NetworkConfig } from '../network-config.js';
import type { VxlanMode } from './vxlan-config.js';

/** What the caller may choose about the data plane; the rest follows from the network and the host. */
export type DataplaneChoices = Pick<
  DataplaneOptions,
  'device' | 'workers' | 'sourceCheck' | 'sourcePort' | 'offload' | 'spin' | 'pathMtu' | 'peerProbes' | 'maxRoutes'
>;

export type PeerSources = ReadonlyMap<string, readonly Address[]>;

export interface BackendOptions {
  readonly network: NetworkConfig;
  readonly underlay: SelectedInterface;
  readonly dataplane: DataplaneChoices;
  readonly txQueueLength?: number;
  /**
   * Start of the names of files that outlive the process and are this agent's alone (`/var/lib/podwire/run-flannel-subnet`:
   * append `.vtep` and the like); absent: keep nothing.
   */
  readonly state?: string;
  /** Overrules the network config's `Mode` of the vxlan backend. */
  readonly vxlanMode?: VxlanMode;
  /** UDP port of this host's tunnel, where it is not the network's (udp, and vxlan in user space). */
  readonly port?: number;
  /** Further outer addresses that hosts send from, by the text of their leases' address. */
  readonly peerSources?: PeerSources;
  readonly runner: Runner;
  readonly logger: Logger;
  /**
   * Hears that a prefix given to `setRoute` could not be programmed (one line), and with undefined that it now is. For
   * backends that program the kernel after `setRoute` has returned.
   */
  readonly onRouteFault?: (prefix: Prefix, reason: string | undefined) => void;
  /** Keeps the host as the backend needs it. */
  readonly guard?: Guard;
  /** Seam for tests; default {@link Dataplane.start}. */
  readonly openDataplane?: (options: DataplaneOptions) => Promise<Dataplane>;
}

export interface Backend extends AsyncDisposable {
  /** Name in the network config: `udp`. */
  readonly type: string;
  /** What peers need to know of us, for the lease. */
  readonly attributes: LeaseAttributes;
  /** This host's underlay addresses, which no other host's lease may name. */
  readonly ownAddresses: readonly Address[];
  /** The device that pods' packets leave through: the overlay's own, or the underlay's where there is none. */
  readonly device: string;
  /** The device of IPv6 packets, where it is another one. */
  readonly device6?: string | undefined;
  /** Overlay MTU in bytes: what pods get. */
  readonly mtu: number;
  /** The user-space engine; undefined where the kernel carries the packets. */
  readonly dataplane: Dataplane | undefined;
  /** Resolves after {@link close}; rejects when packets cannot be carried any more. */
  readonly closed: Promise<void>;
  /** What was set up, for the log and the status. */
  readonly facts: Readonly<Record<string, unknown>>;
  /** What is wrong on the host and not the backend's to put right; one line each. */
  readonly problems?: readonly string[];
  /** Undefined where the kernel carries the packets. */
  readonly stats: DataplaneStats | undefined;
  /** True where the engine has no port to ask and answer peer probes on. */
  readonly isWithoutPort?: boolean;
  /** True where the leases of other hosts are shown and nothing is set up for them. */
  readonly isPassive?: boolean;
  /**
   * Sets this host up for its lease, and calls `publish` as soon as pods' packets have their way: it tells the host's
   * consumers. What is only looked at (drift, what others have set up) comes after that.
   *
   * @throws {PodwireError} `INTERFACE`, `COMMAND_FAILED`, what `publish` throws; then the backend must be closed.
   */
  begin(lease: Lease, publish: () => Promise<void>): Promise<void>;
  /**
   * A new subnet in place of an old one: both are served while `publish` tells the host's consumers, then the old one
   * is let go.
   *
   * @throws {PodwireError} `COMMAND_FAILED`; the old subnet is then still served.
   */
  changeSubnet(from: Lease, to: Lease, publish: () => Promise<void>): Promise<void>;
  /** Why the prefix of another host's lease cannot be followed by this backend, beyond what every backend refuses. */
  refusal(lease: Lease, prefix: Prefix): string | undefined;
  /**
   * Sends a prefix to the host of its lease; replaces what the prefix had.
   *
   * @throws {PodwireError} `CAPACITY`; everything is as before.
   */
  setRoute(prefix: Prefix, lease: Lease): void;
  /** False when there was no such route. */
  removeRoute(prefix: Prefix): boolean;
  /** All leases of the store have been given: what an earlier run left for other prefixes may go now. */
  routesComplete(): void;
  /** Addresses or routes of this host have changed: what was read of them at the start is read again. */
  hostChanged?(): Promise<void>;
  /**
   * After {@link close}: removes what it left in the kernel, because another backend takes its place. Absent: nothing
   * is left.
   */
  dismantle?(): Promise<void>;
  /** Stops carrying packets, or leaves the kernel to it where that is the backend's way. May be called twice. */
  close(): Promise<void>;
}
