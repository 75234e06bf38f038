/**
 * From the leases of a store to the routes a host should have: refuses what must not be followed, and reports the
 * net difference of every step. Knows no store and no data plane.
 *
 * Where leases overlap, the one already followed stays; on a first snapshot the lower key wins, so that all
 * hosts choose alike. When a lease goes, those refused for overlapping it are judged again.
 */
import type { Address, Prefix } from '../net/prefix.js';
import { sameAttributes } from './lease-codec.js';
import { subnetsOf, type Lease } from './lease.js';
import { leaseKey } from './lease-key.js';
import { refuseLease, type Refusal, type RefusalReason } from './lease-refusal.js';
import type { NetworkConfig } from './network-config.js';
import { DisjointPrefixes } from './ranges.js';

export interface DesiredRoute {
  readonly prefix: Prefix;
  /** Underlay address of the host behind it: the lease's PublicIPv6 for an IPv6 prefix where it has one, else PublicIP. */
  readonly via: Address;
  readonly lease: Lease;
}

export interface RefusedLease extends Refusal {
  readonly lease: Lease;
}

/** The net effect of one step; a prefix is in one of the two lists at most. */
export interface RouteDifference {
  /** New, or with other attributes; `before` is what it replaces. */
  readonly added: readonly { readonly route: DesiredRoute; readonly before?: DesiredRoute }[];
  readonly removed: readonly DesiredRoute[];
  /** Refused in this step, or for another reason than before. */
  readonly refused: readonly RefusedLease[];
}

export interface DesiredRoutesContext {
  readonly config: NetworkConfig;
  readonly own: Lease;
  readonly ownAddresses: readonly Address[];
}

export class DesiredRoutes {
  #context: DesiredRoutesContext;
  readonly #known = new Map<string, Lease>();
  readonly #accepted = new Map<string, Lease>();
  readonly #disjoint = new DisjointPrefixes<Lease>();
  readonly #routes = new Map<string, DesiredRoute>();
  readonly #refused = new Map<string, RefusedLease>();
  readonly #refusals: Partial<Record<RefusalReason, number>> = {};
  /** During a step: routes as they were before it, by prefix, and new refusals. */
  #before = new Map<string, DesiredRoute | undefined>();
  #newlyRefused: RefusedLease[] = [];

  constructor(context: DesiredRoutesContext) {
    this.#context = context;
  }

  /** By prefix text, `10.5.34.0/24`. A live view. */
  get routes(): ReadonlyMap<string, DesiredRoute> {
    return this.#routes;
  }

  /** Every lease of another host, followed or not, by key. A live view. */
  get leases(): ReadonlyMap<string, Lease> {
    return this.#known;
  }

  /** Leases not followed at present, by key. A live view. */
  get refused(): ReadonlyMap<string, RefusedLease> {
    return this.#refused;
  }

  /** How often leases were refused, by reason, since the start. */
  get refusals(): Readonly<Partial<Record<RefusalReason, number>>> {
    return this.#refusals;
  }

  /** The store holds exactly these. */
  replace(leases: readonly Lease[]): RouteDifference {
    return this.#step(() => {
      const next = new Map(leases.map((lease) => [leaseKey(lease), lease]));
      for (const key of this.#known.keys()) if (!next.has(key)) this.#remove(key);
      for (const [key, lease] of next) if (this.#accepted.has(key)) this.#put(key, lease);
      const rest = [...next].filter(([key]) => !this.#accepted.has(key)).sort(([a], [b]) => (a < b ? -1 : 1));
      for (const [key, lease] of rest) this.#put(key, lease);
    });
  }

  put(lease: Lease): RouteDifference {
    return this.#step(() => this.#put(leaseKey(lease), lease));
  }

  remove(lease: Lease): RouteDifference {
    return this.#step(() => this.#remove(leaseKey(lease)));
  }

  /** Judges everything again: our own lease, our addresses or the network have changed. */
  setContext(context: DesiredRoutesContext): RouteDifference {
    this.#context = context;
    return this.replace([...this.#known.values()]);
  }

  #put(key: string, lease: Lease): void {
    this.#known.set(key, lease);
    const accepted = this.#accepted.get(key);
    if (accepted) for (const prefix of subnetsOf(accepted)) this.#disjoint.delete(prefix);
    const refusal = refuseLease(lease, {
      ...this.#context,
      overlapping: (subnet) => this.#disjoint.overlapping(subnet),
    });
    if (refusal) {
      if (accepted) this.#withdraw(key, accepted);
      this.#refuse(key, { ...refusal, lease });
      return;
    }
    this.#refused.delete(key);
    this.#accepted.set(key, lease);
    for (const prefix of subnetsOf(lease)) {
      this.#disjoint.add(prefix, lease);
      this.#setRoute({ prefix, via: underlayOf(prefix, lease), lease });
    }
  }

  #remove(key: string): void {
    this.#known.delete(key);
    this.#refused.delete(key);
    const accepted = this.#accepted.get(key);
    if (!accepted) return;
    for (const prefix of subnetsOf(accepted)) this.#disjoint.delete(prefix);
    this.#withdraw(key, accepted);
  }

  /** `accepted` is out of the index already. */
  #withdraw(key: string, accepted: Lease): void {
    this.#accepted.delete(key);
    for (const prefix of subnetsOf(accepted)) {
      const text = prefix.toString();
      this.#remember(text);
      this.#routes.delete(text);
    }
  }

  #refuse(key: string, refused: RefusedLease): void {
    const before = this.#refused.get(key);
    this.#refused.set(key, refused);
    if (before?.detail === refused.detail) return;
    this.#refusals[refused.reason] = (this.#refusals[refused.reason] ?? 0) + 1;
    this.#newlyRefused.push(refused);
  }

  #setRoute(route: DesiredRoute): void {
    const text = route.prefix.toString();
    this.#remember(text);
    this.#routes.set(text, route);
  }

  #remember(prefix: string): void {
    if (!this.#before.has(prefix)) this.#before.set(prefix, this.#routes.get(prefix));
  }

  #step(change: () => void): RouteDifference {
    this.#before = new Map();
    this.#newlyRefused = [];
    change();
    const isFreed = [...this.#before].some(([text, before]) => before && !this.#routes.has(text));
    if (isFreed) {
      const waiting = [...this.#refused].filter(([, { reason }]) => reason === 'overlap');
      for (const [key, { lease }] of waiting.sort(([a], [b]) => (a < b ? -1 : 1))) this.#put(key, lease);
    }
    const added: { route: DesiredRoute; before?: DesiredRoute }[] = [];
    const removed: DesiredRoute[] = [];
    for (const [text, before] of this.#before) {
      const route = this.#routes.get(text);
      if (!route) {
        if (before) removed.push(before);
      } else if (!before) {
        added.push({ route });
      } else if (!sameAttributes(before.lease.attributes, route.lease.attributes)) {
        added.push({ route, before });
      }
    }
    return { added, removed, refused: this.#newlyRefused };
  }
}

function underlayOf(prefix: Prefix, lease: Lease): Address {
  const { publicIp, publicIpv6 } = lease.attributes;
  return prefix.family === 6 && publicIpv6 ? publicIpv6 : publicIp;
}
