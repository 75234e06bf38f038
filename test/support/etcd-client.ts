/**
 * Raw access to etcd behind the stores' backs, and time that passes at will: etcd counts a lease's life in real
 * seconds, so {@link EtcdTime} revokes the leases whose life is over by a manual clock.
 */
import { randomBytes } from 'node:crypto';
import type { ManualClock } from '../../src/control/clock.js';
import { EtcdTransport } from '../../src/control/stores/etcd/transport.js';
import type { Compare, KeyValue, RequestOp } from '../../src/control/stores/etcd/protocol.js';
import { parseEndpoints, TlsFiles, type ConnectionOptions } from '../../src/control/stores/etcd/settings.js';

export class RawEtcd {
  readonly transport: EtcdTransport;

  constructor(options: ConnectionOptions) {
    const { username, password } = options;
    this.transport = new EtcdTransport({
      endpoints: parseEndpoints(options),
      tls: options.caFile === undefined ? undefined : new TlsFiles(options),
      username,
      password,
      requestTimeoutMs: 10_000,
      random: () => 0,
    });
  }

  /** Conditional on what is there, so that a member that was paused cannot do it a second time later. */
  async put(key: string, value: string, lease = '0'): Promise<void> {
    const wanted = Buffer.from(value);
    const put = { request_put: { key: Buffer.from(key), value: wanted, lease } };
    await this.#change(key, [put], (kv) => kv?.lease === lease && kv.value.equals(wanted));
  }

  async get(key: string): Promise<KeyValue | undefined> {
    return (await this.transport.read('range', { key: Buffer.from(key) })).kvs[0];
  }

  async delete(key: string): Promise<void> {
    await this.#change(key, [{ request_delete_range: { key: Buffer.from(key) } }], (kv) => kv === undefined);
  }

  /** Writes a key, bound as it is, unless it has changed since `kv` was read. */
  async putIfSame(kv: KeyValue, value: string): Promise<void> {
    const compare: Compare = { key: kv.key, result: 'EQUAL', target: 'MOD', mod_revision: Number(kv.mod_revision) };
    const put = { request_put: { key: kv.key, value: Buffer.from(value), lease: kv.lease } };
    await this.transport.read('txn', { compare: [compare], success: [put] });
  }

  /** Deletes a key unless it has changed since `kv` was read. */
  async deleteIfSame(kv: KeyValue): Promise<void> {
    const compare: Compare = { key: kv.key, result: 'EQUAL', target: 'MOD', mod_revision: Number(kv.mod_revision) };
    await this.transport.read('txn', { compare: [compare], success: [{ request_delete_range: { key: kv.key } }] });
  }

  async #change(
    key: string,
    success: readonly RequestOp[],
    isDone: (kv: KeyValue | undefined) => boolean,
  ): Promise<void> {
    for (let kv = await this.get(key); ; kv = await this.get(key)) {
      const name = { key: Buffer.from(key), result: 'EQUAL' } as const;
      const compare: Compare = kv
        ? { ...name, target: 'MOD', mod_revision: Number(kv.mod_revision) }
        : { ...name, target: 'VERSION', version: 0 };
      const { succeeded } = await this.transport.read('txn', { compare: [compare], success });
      if (succeeded || isDone(await this.get(key))) return;
    }
  }

  /** All keys that start with `prefix`. */
  async list(prefix: string): Promise<readonly KeyValue[]> {
    const end = Buffer.from(prefix);
    end[end.length - 1]! += 1;
    return (await this.transport.read('range', { key: Buffer.from(prefix), range_end: end })).kvs;
  }

  async grant(seconds: number): Promise<string> {
    const id = String((randomBytes(8).readBigUInt64BE() >> 1n) | 1n);
    return (await this.transport.read('leaseGrant', { TTL: seconds, ID: id })).ID;
  }

  /** Remaining and granted life in seconds, and the keys bound to the lease; -1 when it is gone. */
  async timeToLive(id: string): Promise<{ left: number; granted: number; keys: string[] }> {
    const { TTL, grantedTTL, keys } = await this.transport.read('leaseTimeToLive', { ID: id, keys: true });
    return { left: Number(TTL), granted: Number(grantedTTL), keys: keys.map((key) => key.toString()) };
  }

  async revoke(id: string): Promise<void> {
    await this.transport.read('leaseRevoke', { ID: id });
  }

  close(): void {
    this.transport.close();
  }
}

/** Leases end by the clock instead of etcd's seconds. What was granted since the last step was granted at its end. */
export class EtcdTime {
  readonly #raw: RawEtcd;
  readonly #prefix: string;
  readonly #clock: ManualClock;
  readonly #ends = new Map<string, number>();

  constructor(raw: RawEtcd, prefix: string, clock: ManualClock) {
    this.#raw = raw;
    this.#prefix = prefix;
    this.#clock = clock;
  }

  async advance(ms: number): Promise<void> {
    for (const { lease } of await this.#raw.list(this.#prefix)) {
      if (lease === '0' || this.#ends.has(lease)) continue;
      const { granted } = await this.#raw.timeToLive(lease);
      this.#ends.set(lease, this.#clock.now() + granted * 1000);
    }
    await this.#clock.advance(ms);
    for (const [lease, endMs] of this.#ends) {
      if (endMs > this.#clock.now()) continue;
      this.#ends.delete(lease);
      await this.#raw.revoke(lease).catch(() => undefined);
    }
  }
}
