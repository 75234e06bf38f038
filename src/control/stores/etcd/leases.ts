/**
 * Leases as transactions on etcd.
 *
 * What is written depends on what was read, so every write is conditional on nothing relevant having changed since:
 * - a lease is *taken* only while the network config is the one that was read and nobody has the key; where keys can
 *   share addresses without being equal (two families, several subnet lengths), only while no lease at all has been
 *   created since. So no two podwire hosts can ever write overlapping leases, not even for a moment, and no key's
 *   family can differ from the config's, either of which confuses or kills flanneld peers;
 * - a lease is *prolonged*, as flanneld does it, by binding the key to a fresh etcd lease, but only while the key is
 *   what was read. The etcd lease it had before is revoked once nothing is bound to it.
 *
 * A condition that fails, or a write whose answer is lost, is followed by reading again and deciding anew. A write
 * without an answer may still be done at any time; its etcd lease is revoked only once a later write has succeeded,
 * which either has made it impossible or has made what it writes superfluous.
 */
import { randomBytes } from 'node:crypto';
import { PodwireError } from '../../../errors.js';
import { allocate, checkAddresses, checkRequest, type Allocation } from '../../allocator.js';
import { Backoff, pause, systemClock, type Clock } from '../../clock.js';
import { encodeLease, tryDecodeLease, type StoredLease } from '../../lease-codec.js';
import { subnetsOf, type AcquireRequest, type Lease } from '../../lease.js';
import { parseNetworkConfig, type NetworkConfig } from '../../network-config.js';
import { EtcdFault } from './faults.js';
import type { EtcdKeys } from './keys.js';
import {
  NO_LEASE,
  put,
  unchanged,
  type Compare,
  type KeyValue,
  type RequestOp,
  type ResponseHeader,
} from './protocol.js';
import type { EtcdTransport } from './transport.js';
import type { EtcdView } from './view.js';

export interface EtcdLeasesOptions {
  readonly transport: EtcdTransport;
  readonly view: EtcdView;
  readonly keys: EtcdKeys;
  readonly clock: Clock;
  readonly random: () => number;
  readonly ttlMs: number;
  readonly description: string;
}

/** One consistent look at etcd. */
export interface Snapshot {
  readonly header: ResponseHeader | null;
  readonly revision: number;
  readonly config: KeyValue | undefined;
  readonly kvs: readonly KeyValue[];
}

interface Grant {
  readonly id: string;
  readonly grantedMs: number;
  readonly expiresAt: Date;
}

/** Races are lost to somebody who got a lease, so they end; this bounds the ones that do not. */
const ACQUIRE_PATIENCE_MS = 90_000;
/** Writes in a row that etcd may fail while it goes on answering reads. */
const WRITE_FAILURES = 3;
/** An unused etcd lease this young serves the next attempt. */
const GRANT_LIFE_MS = 5_000;
/** In one transaction; etcd's limit is 128 operations. */
const MOST_DISCARDED = 50;

export class EtcdLeases {
  readonly #options: EtcdLeasesOptions;

  constructor(options: EtcdLeasesOptions) {
    this.#options = options;
  }

  /** The config's text. @throws EtcdFault. */
  async readConfig(signal?: AbortSignal): Promise<string | undefined> {
    const { transport, keys } = this.#options;
    const { kvs } = await transport.read('range', { key: keys.config }, signal);
    return kvs[0]?.value.toString();
  }

  /** @throws PodwireError NO_CONFIG, INVALID_CONFIG. */
  parseConfig(text: string | undefined): NetworkConfig {
    if (text !== undefined) return parseNetworkConfig(text);
    const { keys, description } = this.#options;
    const strange = keys.prefix.startsWith('/') ? '' : ' (the prefix has no leading /, which makes it another tree)';
    throw new PodwireError(
      'NO_CONFIG',
      'flannel config not found in etcd store. Did you create your config using etcdv3 API? ' +
        `There is no key ${keys.configPath} in ${description}${strange}; create it with: ` +
        `etcdctl put ${keys.configPath} '{"Network":"10.42.0.0/16","Backend":{"Type":"udp"}}'`,
    );
  }

  /** Reads the config and everything under the prefix at one revision, into the view as well. @throws EtcdFault. */
  async readAll(signal?: AbortSignal): Promise<Snapshot> {
    const { transport, view, keys } = this.#options;
    const since = view.revision;
    const { header, responses } = await transport.read(
      'txn',
      {
        success: [{ request_range: { key: keys.config } }, { request_range: { key: keys.first, range_end: keys.end } }],
      },
      signal,
    );
    const kvs = responses[1]?.response_range?.kvs ?? [];
    return { header, revision: view.replace(header, kvs, since), config: responses[0]?.response_range?.kvs[0], kvs };
  }

  /** @throws EtcdFault, and PodwireError as `LeaseStore.acquire`. */
  async acquire(request: AcquireRequest, signal: AbortSignal): Promise<Lease> {
    const { view, description } = this.#options;
    const { table } = view;
    const ttlMs = request.ttlMs ?? this.#options.ttlMs;
    const backoff = new Backoff({ minMs: 10, maxMs: 1000 }, this.#options.random);
    const giveUpMs = systemClock.monotonic() + ACQUIRE_PATIENCE_MS;
    const doubtful: string[] = [];
    let failures = 0;
    let grant: Grant | undefined;
    /** Takes back what our last write would have made of the table, had it been done. */
    let undo: (() => void) | undefined;
    try {
      for (let attempt = 1; ; attempt++) {
        const snapshot = await this.readAll(signal);
        undo?.();
        undo = undefined;
        const config = this.parseConfig(snapshot.config?.value.toString());
        checkRequest(config, { ...request, ttlMs });
        const plan = allocate({ config, request, held: view.held(request), random: this.#options.random });
        for (const lease of plan.conflicts) table.conflict(lease);
        const isReservation = plan.own !== undefined && plan.own.expiresAt === undefined;
        try {
          if (grant && performance.now() - grant.grantedMs > GRANT_LIFE_MS) {
            this.#revoke(grant.id);
            grant = undefined;
          }
          if (!isReservation) grant ??= await this.#grant(ttlMs, signal);
          const bound = isReservation ? undefined : grant;
          const lease = leaseFrom(plan, request, bound?.expiresAt);
          undo = table.claim(table.nameOf(lease), lease, ttlMs);
          if (await this.#take(snapshot, plan, lease, bound, mayOverlap(config, view.held(request)))) {
            undo = undefined;
            if (bound) grant = undefined;
            for (const id of doubtful) this.#revoke(id);
            return lease;
          }
          failures = 0;
        } catch (error) {
          // Whether it was done is seen at the next look.
          if (!(error instanceof EtcdFault) || !(error.isTransient || error.kind === 'no-lease')) throw error;
          if (grant) doubtful.push(grant.id);
          grant = undefined;
          if (++failures >= WRITE_FAILURES) throw error;
        }
        if (systemClock.monotonic() >= giveUpMs) {
          throw new PodwireError(
            'STORE_UNAVAILABLE',
            `no lease from ${description} after ${attempt} attempts, each lost to another host; try again`,
          );
        }
        await pause(systemClock, backoff.nextMs(), signal);
      }
    } finally {
      undo?.();
      if (grant) this.#revoke(grant.id);
    }
  }

  /** @throws EtcdFault, and PodwireError as `LeaseStore.renew`. */
  async renew(lease: Lease, signal: AbortSignal): Promise<Lease> {
    const { transport, view, keys } = this.#options;
    const { table } = view;
    const name = table.nameOf(lease);
    const key = keys.keyOf(name);
    const backoff = new Backoff({ minMs: 10, maxMs: 500 }, this.#options.random);
    const doubtful: string[] = [];
    for (let failures = 0; ;) {
      const { header, responses } = await transport.read(
        'txn',
        { success: [{ request_range: { key: keys.config } }, { request_range: { key } }] },
        signal,
      );
      const config = tryParseConfig(responses[0]?.response_range?.kvs[0]?.value.toString());
      const kv = responses[1]?.response_range?.kvs[0];
      if (!kv) view.delete(name, Number(header?.revision ?? 0));
      const stored = kv && tryDecodeLease(kv.value.toString());
      if (!kv || (stored && !table.ourTest(name, lease)(stored))) throw this.#lost(name, stored);
      this.#checkRenewal(name, lease, config);
      const ttlMs = table.ttlOf(name) ?? this.#options.ttlMs;
      // An operator may have turned the lease into a reservation, or back.
      const isReservation = stored ? kv.lease === NO_LEASE : lease.expiresAt === undefined;
      let grant: Grant | undefined;
      let undo: (() => void) | undefined;
      try {
        if (!isReservation) grant = await this.#grant(ttlMs, signal);
        const { expiresAt: _before, unconfirmed: _cached, ...rest } = lease;
        const renewed: Lease = { ...rest, ...(grant && { expiresAt: grant.expiresAt }) };
        const value = valueOf(renewed, stored);
        undo = table.claim(name, renewed, ttlMs);
        const done = await transport.write(
          'txn',
          { compare: [unchanged(kv)], success: [put(key, value, grant)] },
          signal,
        );
        if (done.succeeded) {
          undo = undefined;
          this.#wrote(key, value, grant, done.header);
          table.settle(name, renewed);
          this.revokeUnused(kv.lease);
          for (const id of doubtful) this.#revoke(id);
          return renewed;
        }
        if (grant) this.#revoke(grant.id);
      } catch (error) {
        // Whether it was done is seen at the next look.
        if (!(error instanceof EtcdFault) || !(error.isTransient || error.kind === 'no-lease')) throw error;
        if (grant) doubtful.push(grant.id);
        if (++failures >= WRITE_FAILURES) throw error;
      } finally {
        undo?.();
      }
      await pause(systemClock, backoff.nextMs(), signal);
    }
  }

  /** @throws EtcdFault. */
  async release(lease: Lease): Promise<void> {
    const { transport, view, keys } = this.#options;
    const { table } = view;
    const name = table.nameOf(lease);
    const key = keys.keyOf(name);
    for (let attempt = 1; ; attempt++) {
      const { kvs } = await transport.read('range', { key });
      const kv = kvs[0];
      const stored = kv && tryDecodeLease(kv.value.toString());
      if (!kv || kv.lease === NO_LEASE || !stored || !table.ourTest(name, lease)(stored)) break;
      try {
        const request = { compare: [unchanged(kv)], success: [{ request_delete_range: { key } }] };
        const { succeeded, header } = await transport.write('txn', request);
        if (succeeded) {
          table.disown(name);
          view.delete(name, Number(header?.revision ?? 0));
          await this.#revokeIfUnused(kv.lease);
          return;
        }
      } catch (error) {
        if (!(error instanceof EtcdFault) || !error.isTransient || attempt >= WRITE_FAILURES) throw error;
      }
    }
    table.disown(name);
  }

  /** Ends an etcd lease in the background unless some key is bound to it. */
  revokeUnused(id: string): void {
    if (id !== NO_LEASE) this.#revokeIfUnused(id).catch(() => undefined);
  }

  async #revokeIfUnused(id: string): Promise<void> {
    const { transport } = this.#options;
    try {
      const { keys, TTL } = await transport.read('leaseTimeToLive', { ID: id, keys: true });
      if (keys.length === 0 && Number(TTL) > 0) await transport.read('leaseRevoke', { ID: id });
    } catch (error) {
      if (!(error instanceof EtcdFault)) throw error;
    }
  }

  /** Ends an etcd lease that we granted and that nothing of ours needs. */
  #revoke(id: string): void {
    this.#options.transport.read('leaseRevoke', { ID: id }).catch(() => undefined);
  }

  /**
   * One conditional write of what `plan` says; false when somebody changed what it is based on. With `isAlone` that is
   * so as soon as anybody has created a key. @throws EtcdFault.
   */
  async #take(
    snapshot: Snapshot,
    plan: Allocation,
    lease: Lease,
    grant: Grant | undefined,
    isAlone: boolean,
  ): Promise<boolean> {
    const { transport, view, keys } = this.#options;
    const name = view.table.nameOf(lease);
    const key = keys.keyOf(name);
    const byName = new Map(snapshot.kvs.map((kv) => [keys.nameOf(kv.key), kv]));
    const compare: Compare[] = snapshot.config ? [unchanged(snapshot.config)] : [];
    const success: RequestOp[] = [];
    const present = plan.own && byName.get(name);
    if (present) compare.push(unchanged(present));
    else {
      compare.push({ key, result: 'EQUAL', target: 'VERSION', version: 0 });
      if (isAlone) {
        compare.push({
          key: keys.first,
          range_end: keys.end,
          result: 'LESS',
          target: 'CREATE',
          create_revision: snapshot.revision + 1,
        });
      }
    }
    // First, so that a peer that handles one event after the other does not drop the new route with the old lease.
    const discarded = plan.discard.slice(0, MOST_DISCARDED).flatMap((old) => {
      const kv = byName.get(view.table.nameOf(old));
      return kv ? [kv] : [];
    });
    for (const kv of discarded) {
      compare.push(unchanged(kv));
      success.push({ request_delete_range: { key: kv.key } });
    }
    const value = valueOf(lease, present && tryDecodeLease(present.value.toString()));
    success.push(put(key, value, grant));
    const { succeeded, header } = await transport.write('txn', { compare, success });
    if (!succeeded) return false;
    for (const kv of discarded) view.delete(keys.nameOf(kv.key), Number(header?.revision ?? 0));
    this.#wrote(key, value, grant, header);
    view.table.settle(name, lease);
    for (const kv of [...discarded, ...(present ? [present] : [])]) this.revokeUnused(kv.lease);
    return true;
  }

  async #grant(ttlMs: number, signal: AbortSignal): Promise<Grant> {
    const { transport, clock } = this.#options;
    // An id of our own choice makes the call repeatable.
    const id = String((randomBytes(8).readBigUInt64BE() >> 1n) | 1n);
    const nowMs = clock.now();
    const grantedMs = performance.now();
    const seconds = Math.ceil(ttlMs / 1000);
    try {
      const { TTL } = await transport.read('leaseGrant', { TTL: seconds, ID: id }, signal);
      return { id, grantedMs, expiresAt: new Date(nowMs + Number(TTL) * 1000) };
    } catch (error) {
      if (!(error instanceof EtcdFault) || error.kind !== 'lease-exists') throw error;
      return { id, grantedMs, expiresAt: new Date(nowMs + seconds * 1000) };
    }
  }

  #wrote(key: Buffer, value: Buffer, grant: Grant | undefined, header: ResponseHeader | null): void {
    const revision = header?.revision ?? '0';
    const lease = grant?.id ?? NO_LEASE;
    this.#options.view.put({ key, value, lease, mod_revision: revision, create_revision: revision });
  }

  /**
   * What must not be written again, because flanneld could not bear it.
   * @throws PodwireError LEASE_LOST when the network has changed its families, INVALID_ARGUMENT for the attributes.
   */
  #checkRenewal(name: string, lease: Lease, config: NetworkConfig | undefined): void {
    // A config that is missing or broken just now is no reason to give a lease up.
    if (!config) return;
    const gone = subnetsOf(lease).find(({ family }) => !(family === 4 ? config.enableIPv4 : config.enableIPv6));
    if (gone || (lease.subnet.family === 6 && config.enableIPv4)) {
      const why = gone ? `has no IPv${gone.family} any more` : 'has IPv4 now';
      throw new PodwireError('LEASE_LOST', `lease ${name} does not fit: the network ${why}; acquire it again`);
    }
    if (lease.subnet6 && !lease.attributes.publicIpv6) checkAddresses(config, lease.attributes);
  }

  #lost(name: string, holder: StoredLease | undefined): PodwireError {
    const what = holder ? `is now held by ${holder.attributes.publicIp.toString()}` : 'is gone';
    return new PodwireError('LEASE_LOST', `lease ${name} in ${this.#options.description} ${what}; acquire it again`);
  }
}

/** Whether leases could share addresses although their keys differ. */
function mayOverlap(
  config: NetworkConfig,
  held: readonly { subnet: Lease['subnet']; subnet6?: Lease['subnet'] }[],
): boolean {
  if (config.enableIPv6) return true;
  return held.some(({ subnet, subnet6 }) => subnet6 !== undefined || subnet.length !== config.subnetLen);
}

function leaseFrom(plan: Allocation, request: AcquireRequest, expiresAt: Date | undefined): Lease {
  const { subnet, subnet6 } = plan.subnets;
  return {
    subnet,
    ...(subnet6 && { subnet6 }),
    attributes: request.attributes,
    ...(expiresAt && { expiresAt }),
    ...(request.owner !== undefined && { owner: request.owner }),
  };
}

function valueOf(lease: Lease, before: StoredLease | undefined): Buffer {
  const { attributes, expiresAt, owner } = lease;
  return Buffer.from(encodeLease(attributes, { expiresAt, owner, unknown: before?.unknown }));
}

function tryParseConfig(text: string | undefined): NetworkConfig | undefined {
  try {
    return text === undefined ? undefined : parseNetworkConfig(text);
  } catch {
    return undefined;
  }
}
