/**
 * What one client of a store believes the store holds: the part every store shares.
 *
 * A store reports what it read (`observe`, `unreadable`, `missing`, `gone`); the table turns texts into leases, keeps
 * the last good value of an entry that can no longer be read, tells the operator once about anything odd, follows
 * expiry on the monotonic clock, keeps the client's own leases apart, and feeds the watchers.
 */
import { messageOf } from '../../errors.js';
import type { HeldSubnets } from '../allocator.js';
import type { Clock } from '../clock.js';
import { decodeLease, type StoredLease } from '../lease-codec.js';
import type { LeaseFeed } from '../lease-feed.js';
import {
  belongsTo,
  sameHost,
  sameSubnets,
  type AcquireRequest,
  type Lease,
  type LeaseSubnets,
  type StoreNotice,
} from '../lease.js';
import { leaseKey, tryParseLeaseKey } from '../lease-key.js';

export interface Entry {
  readonly name: string;
  readonly subnets: LeaseSubnets;
  /** The last good text and the lease it says; absent when it was never readable. */
  readonly text?: string;
  readonly lease?: Lease;
  /** What made the present value unreadable; absent when it is good. */
  readonly corrupt?: string;
  /** Not in the store at the last look, but kept for a while; see {@link EntryTable.missing}. */
  readonly isMissing: boolean;
  /** Monotonic time at which the lease runs out, clock skew included; Infinity for a reservation. */
  readonly deadlineMs: number;
}

interface OwnLease {
  lease: Lease;
  readonly ttlMs: number;
  /** The epoch from which observations show the store with our write in it; undefined while we write. */
  settledAt: number | undefined;
  state: 'held' | 'lost' | 'replaced';
}

export interface EntryTableOptions {
  readonly clock: Clock;
  /** How far the clocks of two hosts may be apart. */
  readonly skewMs: number;
  readonly onNotice: (notice: StoreNotice) => void;
  /** Where an entry is, for people. */
  readonly locate: (name: string) => string;
  /** Reads what the store hands to {@link EntryTable.observe}; default: the value of lease-codec.ts. */
  readonly decode?: (text: string) => StoredLease;
}

export class EntryTable {
  readonly #options: EntryTableOptions;
  readonly #entries = new Map<string, Entry>();
  readonly #shown = new Map<string, Lease>();
  readonly #foreign = new Map<string, string>();
  readonly #own = new Map<string, OwnLease>();
  /** What was said about other agents with our identity, by entry. */
  readonly #conflicts = new Map<string, string>();
  readonly #feeds = new Set<LeaseFeed>();
  #epoch = 0;
  #holdUntilMs = Number.NEGATIVE_INFINITY;
  /** No shown lease runs out before this; may be too early, never too late. */
  #nextDueMs = Number.POSITIVE_INFINITY;

  constructor(options: EntryTableOptions) {
    this.#options = options;
  }

  /** To be taken before an observation starts and handed in with it. */
  get epoch(): number {
    return this.#epoch;
  }

  names(): string[] {
    return [...this.#entries.keys()];
  }

  get size(): number {
    return this.#entries.size;
  }

  get(name: string): Entry | undefined {
    return this.#entries.get(name);
  }

  /** The name under which these subnets are in the store, or would be. */
  nameOf(subnets: LeaseSubnets): string {
    const canonical = leaseKey(subnets);
    if (this.#entries.has(canonical)) return canonical;
    // Somebody may have written the entry by hand in a longer spelling.
    for (const entry of this.#entries.values()) if (sameSubnets(entry.subnets, subnets)) return entry.name;
    return canonical;
  }

  /** The store holds `text` under `name`. */
  observe(name: string, text: string, at: number): void {
    const subnets = tryParseLeaseKey(name);
    if (!subnets) {
      this.foreign(name, text);
      return;
    }
    const before = this.#entries.get(name);
    if (before && before.text === text && before.corrupt === undefined && !before.isMissing) {
      this.publish(name, at);
      return;
    }
    try {
      const { attributes, expiresAt, owner } = (this.#options.decode ?? decodeLease)(text);
      const lease: Lease = {
        ...subnets,
        attributes,
        ...(expiresAt && { expiresAt }),
        ...(owner !== undefined && { owner }),
      };
      // The same text again (after an outage, say) keeps its lease object, so that watchers see no change.
      const same = before?.text === text && before.lease !== undefined;
      this.#entries.set(name, {
        name,
        subnets,
        text,
        lease: same ? before.lease : lease,
        isMissing: false,
        deadlineMs: same ? before.deadlineMs : this.#deadline(expiresAt),
      });
      this.publish(name, at);
    } catch (error) {
      this.unreadable(name, text, messageOf(error), at);
    }
  }

  /** The entry is there, but its value says nothing; `mark` tells one such value from the next. */
  unreadable(name: string, mark: string, reason: string, at: number): void {
    const subnets = tryParseLeaseKey(name);
    if (!subnets) {
      this.foreign(name, mark);
      return;
    }
    const before = this.#entries.get(name);
    const known = before ?? { name, subnets, deadlineMs: Number.POSITIVE_INFINITY };
    this.#entries.set(name, { ...known, corrupt: mark, isMissing: false });
    this.publish(name, at);
    if (before?.corrupt === mark) return;
    const path = this.#options.locate(name);
    const goesOn = before?.lease ? '; going on with its last good value' : '';
    this.#options.onNotice({ kind: 'corrupt', path, reason: `${path}: ${reason}${goesOn}` });
  }

  /** An entry that is no lease by its name. */
  foreign(name: string, mark: string): void {
    if (this.#foreign.get(name) === mark) return;
    this.#foreign.set(name, mark);
    const path = this.#options.locate(name);
    this.#options.onNotice({ kind: 'foreign', path, reason: `${path}: ${foreignReason(name)}; ignored` });
  }

  /** What of `names` was foreign and is gone may be reported again when it returns. */
  forgetForeign(present: ReadonlySet<string>): void {
    for (const name of this.#foreign.keys()) if (!present.has(name)) this.#foreign.delete(name);
  }

  /** Not in the store now, but believed to come back: watchers keep it, an own lease counts as lost. */
  missing(name: string, at: number): void {
    const entry = this.#entries.get(name);
    if (!entry || entry.isMissing) return;
    this.#entries.set(name, { ...entry, isMissing: true });
    this.publish(name, at);
  }

  /** Not in the store any more. */
  gone(name: string, at: number): void {
    this.#foreign.delete(name);
    this.#entries.delete(name);
    this.#conflicts.delete(name);
    this.publish(name, at);
  }

  /** Nothing runs out before `untilMs` (monotonic): after an outage its holders must have time to renew first. */
  hold(untilMs: number): void {
    this.#holdUntilMs = Math.max(this.#holdUntilMs, untilMs);
  }

  get isHolding(): boolean {
    return this.#options.clock.monotonic() < this.#holdUntilMs;
  }

  get holdUntilMs(): number {
    return this.#holdUntilMs;
  }

  /** Monotonic time at which {@link due} may have something. */
  get nextDueMs(): number {
    return Math.max(this.#nextDueMs, this.#holdUntilMs);
  }

  /** Names shown to watchers whose time is up; to be looked at once more and then published. */
  due(): string[] {
    const nowMs = this.#options.clock.monotonic();
    if (nowMs < this.nextDueMs) return [];
    this.#nextDueMs = Number.POSITIVE_INFINITY;
    const names: string[] = [];
    for (const name of this.#shown.keys()) {
      const entry = this.#entries.get(name);
      if (!entry || entry.corrupt !== undefined) continue;
      if (entry.deadlineMs <= nowMs) names.push(name);
      else this.#nextDueMs = Math.min(this.#nextDueMs, entry.deadlineMs);
    }
    return names;
  }

  /** The names failed to be confirmed: they stay due. */
  stillDue(): void {
    this.#nextDueMs = Number.NEGATIVE_INFINITY;
  }

  /**
   * Takes back expiries that the wall clock no longer supports: a host that booted with its clock ahead has seen
   * everything run out.
   */
  revive(at: number): void {
    for (const entry of this.#entries.values()) {
      if (this.#shown.has(entry.name) || !entry.lease || !this.isExpired(entry)) continue;
      const deadlineMs = this.#deadline(entry.lease.expiresAt);
      if (deadlineMs <= this.#options.clock.monotonic()) continue;
      this.#entries.set(entry.name, { ...entry, deadlineMs });
      this.publish(entry.name, at);
    }
  }

  isExpired(entry: Entry): boolean {
    return entry.corrupt === undefined && entry.deadlineMs <= this.#options.clock.monotonic();
  }

  /** The store's entries as `request` must see them when it looks for a subnet. */
  held(request: AcquireRequest): HeldSubnets[] {
    const held: HeldSubnets[] = [];
    for (const entry of this.#entries.values()) {
      const isOwn = this.#own.has(entry.name);
      if (entry.isMissing && (isOwn || (entry.lease && belongsTo(entry.lease, request)))) continue;
      const lease = entry.corrupt === undefined || isOwn ? entry.lease : undefined;
      const mayExpire = !this.isHolding || (lease !== undefined && belongsTo(lease, request));
      held.push({ ...entry.subnets, ...(lease && { lease }), expired: mayExpire && this.isExpired(entry) });
    }
    return held;
  }

  /**
   * From now until {@link settle} what the store shows under `name` is our own doing. The returned function takes
   * the claim back when the write came to nothing.
   */
  claim(name: string, lease: Lease, ttlMs: number): () => void {
    const before = this.#own.get(name);
    this.#own.set(name, { lease, ttlMs, settledAt: undefined, state: 'held' });
    this.publish(name, this.#epoch);
    return () => {
      if (before) this.#own.set(name, before);
      else this.disown(name);
    };
  }

  /** Our write under `name` is done. Other leases of the same agent are no longer held. */
  settle(name: string, lease: Lease): void {
    const own = this.#own.get(name);
    if (!own) return;
    own.lease = lease;
    own.settledAt = ++this.#epoch;
    own.state = 'held';
    for (const feed of this.#feeds) feed.clearOwn(name);
    for (const [other, { lease: theirs }] of this.#own) {
      if (other !== name && belongsTo(theirs, lease)) this.disown(other);
    }
  }

  /** We do not hold `name` (any more): it is shown like everybody's. */
  disown(name: string): void {
    if (!this.#own.delete(name)) return;
    for (const feed of this.#feeds) feed.clearOwn(name);
    this.publish(name, this.#epoch);
  }

  isOwn(name: string): boolean {
    return this.#own.has(name);
  }

  /**
   * Tells whether what is stored under `name` is the lease `lease`, or what we made of it before its attributes
   * changed: a new PublicIP without an owner name to go by must not look like another host.
   */
  ourTest(name: string, lease: Lease): (stored: Pick<Lease, 'owner' | 'attributes'>) => boolean {
    const own = this.#own.get(name)?.lease;
    return (stored) => belongsTo(stored, lease) || (own !== undefined && belongsTo(stored, own));
  }

  ttlOf(name: string): number | undefined {
    return this.#own.get(name)?.ttlMs;
  }

  /** Says once that another live agent claims our identity, and again when it is another one or returns. */
  conflict(lease: Lease): void {
    const { publicIp, publicIpv6 } = lease.attributes;
    const address = publicIp.isUnspecified && publicIpv6 ? publicIpv6 : publicIp;
    const reason =
      `public IP ${address.toString()} is also used by ${lease.owner ?? 'an agent without a name, such as flanneld'}, which holds ` +
      `${leaseKey(lease)}; give every host its own --public-ip`;
    const name = this.nameOf(lease);
    if (this.#conflicts.get(name) === reason) return;
    this.#conflicts.set(name, reason);
    this.#options.onNotice({ kind: 'conflict', lease, reason });
  }

  attach(feed: LeaseFeed): void {
    this.#feeds.add(feed);
    for (const [name, lease] of this.#shown) feed.put(name, lease);
    for (const [name, { state, lease }] of this.#own) {
      if (state !== 'held') feed.own(name, state, this.#entries.get(name)?.lease ?? lease);
    }
  }

  detach(feed: LeaseFeed): void {
    this.#feeds.delete(feed);
  }

  startFeeds(): void {
    for (const feed of this.#feeds) feed.start();
  }

  endFeeds(): void {
    for (const feed of this.#feeds) feed.end();
  }

  /** Works out what watchers should see of `name` after an observation that began at `at`. */
  publish(name: string, at: number): void {
    const entry = this.#entries.get(name);
    const own = this.#own.get(name);
    if (own) this.#publishOwn(name, own, entry, at);
    else if (entry?.lease && !this.isExpired(entry)) this.#compareIdentity(entry.lease);
    if (!own && entry?.lease && (this.isHolding || !this.isExpired(entry))) {
      this.#shown.set(name, entry.lease);
      this.#nextDueMs = Math.min(this.#nextDueMs, entry.deadlineMs);
      for (const feed of this.#feeds) feed.put(name, entry.lease);
    } else if (this.#shown.delete(name)) {
      for (const feed of this.#feeds) feed.delete(name);
    }
  }

  #publishOwn(name: string, own: OwnLease, entry: Entry | undefined, at: number): void {
    if (own.settledAt === undefined || own.settledAt > at) return;
    // Somebody who does not know of owners has written our lease for the same host. An operator makes a reservation.
    const seen = entry?.lease;
    const isNameless = seen?.expiresAt && seen.owner === undefined && own.lease.owner !== undefined;
    if (isNameless && sameHost(seen.attributes, own.lease.attributes)) this.conflict(seen);
    let state: OwnLease['state'] = 'held';
    if (!entry || entry.isMissing) state = 'lost';
    else if (entry.corrupt === undefined && entry.lease && !belongsTo(entry.lease, own.lease)) state = 'replaced';
    if (state === own.state) return;
    own.state = state;
    for (const feed of this.#feeds) {
      if (state === 'held') feed.clearOwn(name);
      else feed.own(name, state, state === 'replaced' && entry?.lease ? entry.lease : own.lease);
    }
  }

  /** Another agent's lease with our address: that agent is alive, or died within the life of its lease. */
  #compareIdentity(lease: Lease): void {
    if (this.#own.size === 0 || lease.owner === undefined) return;
    for (const { lease: mine } of this.#own.values()) {
      const isOther = mine.owner !== undefined && mine.owner !== lease.owner;
      if (isOther && sameHost(lease.attributes, mine.attributes)) this.conflict(lease);
    }
  }

  #deadline(expiresAt: Date | undefined): number {
    if (!expiresAt) return Number.POSITIVE_INFINITY;
    const { clock, skewMs } = this.#options;
    return clock.monotonic() + Math.max(0, expiresAt.getTime() - clock.now() + skewMs);
  }
}

function foreignReason(name: string): string {
  if (name.startsWith('.nfs')) return 'a deleted file that some NFS client still has open';
  if (name.startsWith('.')) return 'a hidden file';
  if (/~$|^#.*#$|\.(sw[a-z]|bak|tmp|orig|new)$/.test(name)) return 'the backup of an editor';
  return 'its name is no lease key like 10.5.34.0-24';
}
