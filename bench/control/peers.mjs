// @ts-check
/**
 * How soon every host hears of a join and a leave: twenty lease keepers on etcd, each with a connection and a lease of its
 * own, in one process. A time is from the moment the write is sent, so that etcd's own is in it.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { LeaseKeeper } from '../../dist/control/lease-keeper.js';
import { etcdStore } from '../../dist/control/stores/etcd.js';
import { Address } from '../../dist/index.js';
import { BenchError } from '../lib/process.mjs';
import { configOf, leaseKeyOf, leaseOf } from './etcd.mjs';

const PEERS = 20;
const SUBNET = '10.77.250.0';
/** Not counted: the first changes meet code that is not compiled yet. */
const WARM_UPS = 3;

/**
 * @param {import('./measure.mjs').Context} context
 * @returns {Promise<{ join: number[], leave: number[] }>} milliseconds, of every peer and trial
 */
export async function measurePeers({ etcd, settings, signal, log }) {
  const prefix = '/bench/peers';
  await etcd.write([configOf(prefix, '10.77.0.0/16')]);
  const found = { join: /** @type {number[]} */ ([]), leave: /** @type {number[]} */ ([]) };
  let sentAt = 0;
  let heard = 0;
  /** @param {number[]} times */
  const hear = (times) => {
    times.push(performance.now() - sentAt);
    heard++;
  };
  const stores = Array.from({ length: PEERS }, () => etcdStore({ endpoints: [etcd.endpoint], prefix }));
  const isIt = (/** @type {any} */ route) => route.prefix.address.toString() === SUBNET;
  let snapshots = 0;
  const keepers = stores.map(
    (store, i) =>
      new LeaseKeeper({
        store,
        attributes: { publicIp: Address.parse(`172.20.0.${i + 1}`), backendType: '' },
        owner: `bench-${i}`,
        listener: {
          snapshotApplied: () => void snapshots++,
          added: (route) => isIt(route) && hear(found.join),
          removed: (route) => isIt(route) && hear(found.leave),
        },
      }),
  );
  /** @param {() => boolean} condition @param {string} what */
  const until = async (condition, what) => {
    const deadline = performance.now() + 10_000;
    while (!condition()) {
      signal.throwIfAborted();
      if (performance.now() > deadline) throw new BenchError(`waited 10 s in vain for ${what}`);
      await delay(1);
    }
  };
  try {
    await Promise.all(keepers.map((keeper) => keeper.start(signal)));
    await until(
      () => snapshots >= PEERS && keepers.every((keeper) => keeper.routes.size === PEERS - 1),
      'all peers to know each other',
    );
    for (let trial = -WARM_UPS; trial < settings.changes; trial++) {
      if (trial === 0) for (const times of [found.join, found.leave]) times.length = 0;
      for (const change of [leaseOf(prefix, SUBNET, '172.20.1.1'), { key: leaseKeyOf(prefix, SUBNET) }]) {
        heard = 0;
        sentAt = performance.now();
        await etcd.write([change]);
        await until(() => heard === PEERS, 'all peers to hear of a change');
      }
    }
  } finally {
    await Promise.all(keepers.map((keeper) => keeper.close()));
    await Promise.all(stores.map((store) => store[Symbol.asyncDispose]()));
  }
  log(`peers: ${PEERS} heard of ${settings.changes} joins and leaves`);
  return found;
}
