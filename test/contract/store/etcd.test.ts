import { afterAll, beforeAll, describe } from 'vitest';
import { ManualClock } from '../../../src/control/clock.js';
import { decodeLease } from '../../../src/control/lease-codec.js';
import { etcdStore } from '../../../src/control/stores/etcd.js';
import { EtcdCluster, type EtcdVersion } from '../../support/etcd.js';
import { EtcdTime, RawEtcd } from '../../support/etcd-client.js';
import { missing } from '../../support/requires.js';
import { storeAdminContract } from './admin.js';
import { leaseStoreContract } from './contract.js';
import type { StoreHarness } from './harness.js';

const CLUSTERS: readonly [name: string, version: EtcdVersion, members: number][] = [
  ['etcd of the distribution', 'etcd-old', 1],
  ['etcd 3.6', 'etcd-3.6', 1],
  ['three nodes of etcd 3.6', 'etcd-3.6', 3],
];

describe.each(CLUSTERS)('%s', (name, version, members) => {
  describe.skipIf(missing({ counterparts: [version, 'etcdctl'] }))('', () => {
    let cluster: EtcdCluster;
    let networks = 0;

    beforeAll(async () => {
      cluster = await EtcdCluster.start({ version, members });
    }, 60_000);
    afterAll(() => cluster[Symbol.asyncDispose]());

    const make = async (): Promise<StoreHarness> => {
      const prefix = `/contract/${networks++}`;
      const raw = new RawEtcd({ endpoints: cluster.urls });
      const clock = new ManualClock(Math.floor(Date.now() / 1000) * 1000);
      const time = new EtcdTime(raw, prefix, clock);
      return {
        open: (onNotice) => etcdStore({ endpoints: cluster.urls, prefix, clock, ...(onNotice && { onNotice }) }),
        setConfig: async (text) => {
          if (text === undefined) await raw.delete(`${prefix}/config`);
          else await raw.put(`${prefix}/config`, text);
        },
        put: async (key, value) => {
          // What ends in a value ends in etcd.
          const endMs = expiryOf(value);
          const lease = endMs === undefined ? '0' : await raw.grant(Math.ceil((endMs - clock.now()) / 1000));
          await raw.put(`${prefix}/subnets/${key}`, value, lease);
        },
        get: async (key) => (await raw.get(`${prefix}/subnets/${key}`))?.value.toString(),
        remove: (key) => raw.delete(`${prefix}/subnets/${key}`),
        keys: async () => {
          const kvs = await raw.list(`${prefix}/subnets/`);
          return kvs.map(({ key }) => key.toString().slice(`${prefix}/subnets/`.length)).sort();
        },
        advance: (ms) => time.advance(ms),
        now: () => clock.now(),
        [Symbol.asyncDispose]: async () => raw.close(),
      };
    };

    leaseStoreContract(name, make);
    storeAdminContract(name, make);
  });
});

function expiryOf(value: string): number | undefined {
  try {
    return decodeLease(value).expiresAt?.getTime();
  } catch {
    return undefined;
  }
}
