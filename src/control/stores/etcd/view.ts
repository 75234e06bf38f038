/**
 * What one client knows of etcd's leases: an {@link EntryTable} fed by lists, watch events and the client's own
 * writes, in whatever order their answers arrive. Every key has the revision of its last change, and older news of a
 * key change nothing.
 */
import type { HeldSubnets } from '../../allocator.js';
import type { Clock } from '../../clock.js';
import { decodeLease, MAX_VALUE_BYTES, tryDecodeLease, type StoredLease } from '../../lease-codec.js';
import { DEFAULT_TTL_MS, type AcquireRequest, type LeaseSubnets, type StoreNotice } from '../../lease.js';
import { tryParseLeaseKey } from '../../lease-key.js';
import { EntryTable } from '../entry-table.js';
import type { EtcdKeys } from './keys.js';
import { NO_LEASE, type KeyValue, type ResponseHeader } from './protocol.js';

/** After etcd came back as another one, leases missing from it are kept this long: their holders write them again. */
const RETURN_GRACE_MS = 60_000;
/** More deletions than this are not remembered longer than any answer can be late. */
const TOMBSTONES = 1000;
const TOMBSTONE_LIFE_MS = 5 * 60_000;

/** A lease seen the moment it was written is dated well enough. */
const DATE_TOLERANCE_MS = 60_000;

export interface KeyState {
  /** Revision of the last change known. */
  readonly modRevision: number;
  /** The etcd lease the key is bound to, or {@link NO_LEASE}. */
  readonly leaseId: string;
  /** Monotonic time at which the key was found deleted. */
  readonly goneMs?: number;
}

export interface EtcdViewOptions {
  readonly keys: EtcdKeys;
  readonly clock: Clock;
  readonly onNotice: (notice: StoreNotice) => void;
  /** For notices. */
  readonly description: string;
}

export class EtcdView {
  readonly table: EntryTable;
  /** Entries that could not be read, each time they were seen anew. */
  skipped = 0;
  readonly #options: EtcdViewOptions;
  readonly #states = new Map<string, KeyState>();
  /** Not leases to us, but held against allocation because flanneld takes them for leases. */
  readonly #heldByFlannel = new Map<string, LeaseSubnets>();
  /** When etcd leases end, by id, where etcd was asked because the value does not say; undefined: as believed. */
  readonly #ends = new Map<string, number | undefined>();
  #revision = 0;
  #clusterId: string | undefined;

  constructor(options: EtcdViewOptions) {
    this.#options = options;
    const { keys, clock, onNotice } = options;
    this.table = new EntryTable({
      clock,
      // etcd itself removes what has run out; until it does, a lease is there.
      skewMs: Number.POSITIVE_INFINITY,
      onNotice,
      locate: (name) => keys.pathOf(name),
      decode: (text) => this.#decode(text),
    });
  }

  /** The highest revision any answer has shown; to be taken before a linearizable read starts. */
  get revision(): number {
    return this.#revision;
  }

  stateOf(name: string): KeyState | undefined {
    const state = this.#states.get(name);
    return state?.goneMs === undefined ? state : undefined;
  }

  /** What `request` must not be given, and what is already its own. */
  held(request: AcquireRequest): HeldSubnets[] {
    const foreign = Array.from(this.#heldByFlannel.values(), (subnets) => ({ ...subnets, expired: false }));
    return [...this.table.held(request), ...foreign];
  }

  /** Whether an answer's cluster is the one we know. One that is behind may just be a member that lags. */
  isKnownCluster(header: ResponseHeader | null): boolean {
    return header === null || this.#clusterId === undefined || header.cluster_id === this.#clusterId;
  }

  /**
   * A linearizable list of everything under the prefix, asked for when {@link revision} was `since`. The same cluster
   * can then not show less than that: if it does, it has been restored or made anew.
   */
  replace(header: ResponseHeader | null, kvs: readonly KeyValue[], since: number): number {
    const revision = Number(header?.revision ?? 0);
    if (!this.isKnownCluster(header) || revision < Math.min(since, this.#revision)) this.#startOver(revision);
    this.#clusterId = header?.cluster_id;
    this.#saw(revision);
    const { table } = this;
    const present = new Set<string>();
    for (const kv of kvs) {
      present.add(this.#options.keys.nameOf(kv.key));
      this.put(kv);
    }
    table.forgetForeign(present);
    for (const name of [...table.names(), ...this.#states.keys()]) {
      const state = this.#states.get(name);
      if (present.has(name) || state?.goneMs !== undefined || (state && state.modRevision > revision)) continue;
      if (table.isHolding && table.get(name)) table.missing(name, table.epoch);
      else this.delete(name, revision);
    }
    this.#bury();
    return revision;
  }

  /** A key has this value; stale news are ignored. */
  put(kv: KeyValue): void {
    const name = this.#options.keys.nameOf(kv.key);
    const modRevision = Number(kv.mod_revision);
    const known = this.#states.get(name);
    const isSame = known?.modRevision === modRevision && known.goneMs === undefined;
    if (known && !isSame && known.modRevision >= modRevision) return;
    this.#saw(modRevision);
    if (known && known.leaseId !== kv.lease) this.#ends.delete(known.leaseId);
    this.#states.set(name, { modRevision, leaseId: kv.lease });
    const { table } = this;
    table.observe(name, `${this.#head(kv.lease)} ${kv.value.toString('utf8', 0, MAX_VALUE_BYTES + 1)}`, table.epoch);
    if (isSame) return;
    const held = this.#options.keys.heldByFlannel(name);
    if (held) this.#heldByFlannel.set(name, held);
    if (table.get(name)?.corrupt !== undefined || !tryParseLeaseKey(name)) this.skipped++;
  }

  /** A key was deleted, or expired, at this revision. */
  delete(name: string, revision: number): void {
    const known = this.#states.get(name);
    if (known && known.modRevision > revision) return;
    this.#saw(revision);
    this.#states.set(name, { modRevision: revision, leaseId: NO_LEASE, goneMs: performance.now() });
    this.#heldByFlannel.delete(name);
    if (known) this.#ends.delete(known.leaseId);
    this.table.gone(name, this.table.epoch);
  }

  /** Leases whose values do not say when they end, as flanneld writes them, and that etcd was not yet asked about. */
  undated(): { readonly name: string; readonly leaseId: string }[] {
    const found: { name: string; leaseId: string }[] = [];
    for (const [name, { leaseId, goneMs }] of this.#states) {
      if (goneMs !== undefined || leaseId === NO_LEASE || this.#ends.has(leaseId)) continue;
      const text = this.table.get(name)?.text;
      if (text !== undefined && tryDecodeLease(text.slice(text.indexOf(' ') + 1))?.expiresAt === undefined)
        found.push({ name, leaseId });
    }
    return found;
  }

  /** etcd says that a lease ends at this time; watchers hear of it unless that is what was believed anyway. */
  date(name: string, leaseId: string, endMs: number): void {
    const { table } = this;
    const entry = table.get(name);
    const believedMs = entry?.lease?.expiresAt?.getTime();
    if (this.stateOf(name)?.leaseId !== leaseId || entry?.text === undefined || believedMs === undefined) return;
    const isKnown = Math.abs(believedMs - endMs) < DATE_TOLERANCE_MS;
    this.#ends.set(leaseId, isKnown ? undefined : endMs);
    const value = entry.text.slice(entry.text.indexOf(' ') + 1);
    if (!isKnown) table.observe(name, `${this.#head(leaseId)} ${value}`, table.epoch);
  }

  #startOver(revision: number): void {
    const { clock, description, onNotice } = this.#options;
    const before = this.#revision;
    this.#revision = revision;
    this.#states.clear();
    this.#ends.clear();
    this.#heldByFlannel.clear();
    if (before === 0) return;
    const isNews = !this.table.isHolding;
    this.table.hold(clock.monotonic() + RETURN_GRACE_MS);
    const reason =
      `${description} is not what it was: a new cluster, restored from a backup, or endpoints of several clusters ` +
      `(revision ${revision} after ${before}); leases missing from it stay in force for ${RETURN_GRACE_MS / 1000} s ` +
      'while their hosts write them again';
    if (isNews) onNotice({ kind: 'degraded', reason });
  }

  #saw(revision: number): void {
    if (revision > this.#revision) this.#revision = revision;
  }

  #bury(): void {
    if (this.#states.size < this.table.size + TOMBSTONES) return;
    const oldMs = performance.now() - TOMBSTONE_LIFE_MS;
    for (const [name, { goneMs }] of this.#states) {
      if (goneMs !== undefined && goneMs < oldMs) this.#states.delete(name);
    }
  }

  /** What the table gets before a value: the etcd lease, and when it ends where that is known from etcd alone. */
  #head(leaseId: string): string {
    const endMs = this.#ends.get(leaseId);
    return endMs === undefined ? leaseId : `${leaseId}@${endMs}`;
  }

  /** A key without an etcd lease is a reservation; flanneld's leases last a day from the moment they are written. */
  #decode(text: string): StoredLease {
    const gap = text.indexOf(' ');
    const [leaseId, endMs] = text.slice(0, gap).split('@');
    const { expiresAt, ...stored } = decodeLease(text.slice(gap + 1));
    if (leaseId === NO_LEASE) return stored;
    const knownMs = endMs === undefined ? this.#options.clock.now() + DEFAULT_TTL_MS : Number(endMs);
    return { ...stored, expiresAt: expiresAt ?? new Date(knownMs) };
  }
}
