/**
 * What must be true on the host, as a list; and the changes that make it so. Shared by every backend that programs the
 * kernel: {@link reconcile} (reconcile.ts) carries a list out once, {@link HostGuard} (guard.ts) keeps it true.
 */
import type { Address, Family, Prefix } from '../net/prefix.js';
import type { KernelRoute } from './routes.js';

export interface DesiredLink {
  readonly device: string;
  /** Present and true: administratively up. There is no desired "down". */
  readonly up?: true;
  /** Bytes. */
  readonly mtu?: number;
  /** Lower case, with colons. */
  readonly mac?: string;
  /** How to make the device when it is gone. Absent: a missing device is a failure of everything on it. */
  readonly create?: {
    /** An `ip` command without the leading `ip`: `link add flannel.1 type vxlan id 1 …`. */
    readonly command: string;
    /**
     * Looks at the device's entry of `ip -j -d address show`: false removes the device and makes it anew. Absent: every
     * device of that name will do.
     */
    readonly matches?: (entry: unknown) => boolean;
  };
}

export interface DesiredAddress {
  readonly device: string;
  readonly address: Address;
  /** Prefix length. */
  readonly length: number;
}

export interface DesiredRoute {
  readonly destination: Prefix;
  readonly device: string;
  /** Absent: the destination is on the device's link. */
  readonly gateway?: Address;
  /** Pretend that the gateway is on the device's link. */
  readonly onlink?: boolean;
  /** Default: the kernel's, 0 for IPv4 and 1024 for IPv6. */
  readonly metric?: number;
  /** Preferred source address. Absent: none is set, and one that the kernel shows is not compared. */
  readonly source?: Address;
  /** Bytes. Absent: none is set, and one that the kernel shows is not compared. */
  readonly mtu?: number;
}

/** A permanent neighbour entry (ARP or ND). */
export interface DesiredNeighbour {
  readonly device: string;
  readonly address: Address;
  readonly mac: string;
}

/** A permanent FDB entry of a vxlan device: frames to `mac` go to the underlay address `remote`. */
export interface DesiredFdbEntry {
  readonly device: string;
  readonly mac: string;
  readonly remote: Address;
}

/** A list that is left out is empty. Of two entries with the same key (prefix and metric, address, MAC) the first counts. */
export interface DesiredHost {
  /** Address families whose routes are looked at; those of `routes` must be among them. */
  readonly families: readonly Family[];
  readonly links?: readonly DesiredLink[];
  readonly addresses?: readonly DesiredAddress[];
  /** All of them get protocol 111 and go into the main table. */
  readonly routes?: readonly DesiredRoute[];
  readonly neighbours?: readonly DesiredNeighbour[];
  readonly fdb?: readonly DesiredFdbEntry[];
  /**
   * Devices that are ours alone: addresses (but link-local ones), permanent neighbours and FDB entries with a remote
   * address that are not in the lists are removed from them.
   */
  readonly exclusive?: readonly string[];
  /**
   * Which routes of protocol 111 are ours: those that are not in the list are removed. Default: those on a device that
   * `links` or `routes` name. A second agent of this host has its routes under the same number.
   */
  readonly ownsRoute?: (route: KernelRoute) => boolean;
  /**
   * Whether ours may take the place of a foreign route with the same destination and metric; default no: the route is
   * then a failure that names the other.
   */
  readonly mayDisplace?: (foreign: KernelRoute) => boolean;
}

export type ChangeKind = 'link' | 'address' | 'route' | 'neighbour' | 'fdb';

/** One step towards the desired state. */
export interface Change {
  readonly kind: ChangeKind;
  readonly action: 'add' | 'change' | 'remove';
  /** Says what it is about, the same for every change of the same thing: `route 10.42.0.0/16`, `link flannel0 mtu`. */
  readonly key: string;
  /** One clause for a person: `mtu of flannel0 was 1400, not 1472`. */
  readonly why: string;
  readonly tool: 'ip' | 'bridge';
  /** The command without the tool's name; undefined: nothing can be done, see `why`. */
  readonly command: string | undefined;
  /** It may undo something else, or hit another thing than it means: look again afterwards. */
  readonly isBlunt?: true;
}

/** The `metric` that a route gets when none is given. */
export function defaultMetric(family: Family): number {
  return family === 4 ? 0 : 1024;
}
