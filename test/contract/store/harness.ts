/** What the contracts of the lease stores run on: a store behind its harness, and clients that end with each test. */
import { afterEach, beforeEach } from 'vitest';
import { encodeLease } from '../../../src/control/lease-codec.js';
import type { AcquireRequest, Lease, LeaseStore, StoreNotice } from '../../../src/control/lease.js';
import { attributesOf, Signal, Watcher } from '../../support/leases.js';

export interface StoreHarness extends AsyncDisposable {
  /** A client of its own, as on one more host. */
  open(onNotice?: (notice: StoreNotice) => void): LeaseStore;
  setConfig(text: string | undefined): Promise<void>;
  /** Raw access to `subnets/<key>`, behind the clients' backs. */
  put(key: string, value: string): Promise<void>;
  get(key: string): Promise<string | undefined>;
  remove(key: string): Promise<void>;
  keys(): Promise<string[]>;
  /** Lets time pass for the store and its clients. */
  advance(ms: number): Promise<void>;
  now(): number;
}

export const CONFIG = '{"Network":"10.42.0.0/16","Backend":{"Type":"udp"}}';
/** Three subnets: .64, .128, .192. */
export const SMALL_CONFIG = '{"Network":"10.42.0.0/24","Backend":{"Type":"udp"}}';
export const DUAL_CONFIG =
  '{"Network":"10.42.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:42::/48","Backend":{"Type":"vxlan"}}';

export const TTL_MS: number = 60 * 60_000;

/** Longer than any tolerance a store has for clocks that differ. */
export const SLACK_MS: number = 10 * 60_000;

/** A fresh store, with {@link CONFIG}, for each test of the block that it is made in. */
export class StoreBed {
  #harness: StoreHarness | undefined;
  readonly #opened: LeaseStore[] = [];
  readonly #watchers: Watcher[] = [];

  constructor(make: () => Promise<StoreHarness>) {
    beforeEach(async () => {
      this.#harness = await make();
      await this.#harness.setConfig(CONFIG);
    });
    afterEach(async () => {
      for (const watcher of this.#watchers.splice(0)) await watcher[Symbol.asyncDispose]();
      for (const store of this.#opened.splice(0)) await store[Symbol.asyncDispose]();
      await this.harness[Symbol.asyncDispose]();
    });
  }

  get harness(): StoreHarness {
    if (this.#harness === undefined) throw new Error('the store exists within tests only');
    return this.#harness;
  }

  open(onNotice?: (notice: StoreNotice) => void): LeaseStore {
    const store = this.harness.open(onNotice);
    this.#opened.push(store);
    return store;
  }

  /** A client whose notices are kept; `noticed` waits until there are so many. */
  openHeard(): { store: LeaseStore; notices: StoreNotice[]; noticed: (count: number) => Promise<void> } {
    const notices: StoreNotice[] = [];
    const heard = new Signal();
    const store = this.open((notice) => {
      notices.push(notice);
      heard.fire();
    });
    return { store, notices, noticed: (count) => heard.until(() => notices.length >= count) };
  }

  async watch(store: LeaseStore): Promise<Watcher> {
    const watcher = new Watcher(store);
    this.#watchers.push(watcher);
    await watcher.started();
    return watcher;
  }

  acquire(store: LeaseStore, publicIp: string, more: Partial<AcquireRequest> = {}): Promise<Lease> {
    return store.acquire({ attributes: attributesOf(publicIp || '0.0.0.0'), ttlMs: TTL_MS, ...more });
  }

  value(publicIp: string, ttlMs?: number, owner?: string): string {
    return encodeLease(attributesOf(publicIp), {
      expiresAt: ttlMs === undefined ? undefined : new Date(this.harness.now() + ttlMs),
      owner,
    });
  }

  /** After this, everything that happened before has reached `watcher`. Nobody is ever given a network's first subnet. */
  async barrier(watcher: Watcher, key = '10.42.0.0-24'): Promise<void> {
    await this.harness.put(key, this.value('198.51.100.250'));
    await watcher.until(() => watcher.leases.has(key));
    await this.harness.remove(key);
    await watcher.until(() => !watcher.leases.has(key));
  }
}
