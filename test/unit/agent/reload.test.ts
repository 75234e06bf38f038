import { expect, test } from 'vitest';
import { type FlagValues, readAgentConfig } from '../../../src/agent/config.js';
import { needRestart, reloadSurroundings } from '../../../src/agent/reload.js';
import { parseNetworkConfig } from '../../../src/control/network-config.js';
import { PodwireError } from '../../../src/errors.js';
import type { LeaseStore, Overlay } from '../../../src/index.js';

const read = (given: FlagValues) => readAgentConfig({ store: 'dir:/x', ...given }, {});

test.each<[FlagValues, FlagValues, string[]]>([
  [{}, {}, []],
  [{ 'log-level': 'info' }, { 'log-level': 'debug' }, []],
  [{}, { workers: '2', spin: 'off' }, ['--workers', '--spin']],
  [{ iface: ['eth0'] }, { iface: ['eth1'], 'healthz-port': '8081' }, ['--iface', '--healthz-port']],
  [
    { store: 'etcd', 'etcd-password': 'a', 'etcd-username': 'u' },
    { store: 'etcd', 'etcd-password': 'hunter2', 'etcd-username': 'u' },
    ['--etcd-password'],
  ],
])('%j -> %j needs a restart for %j, named without values', (before, after, names) => {
  expect(needRestart(read(before), read(after)).sort()).toEqual([...names].sort());
});

function surroundings(after: () => string, refresh: () => Promise<void> = async () => undefined) {
  const said: string[] = [];
  const say =
    (level: string) =>
    (fields: object, message: string): void =>
      void said.push(`${level} ${message} ${JSON.stringify(fields)}`);
  const store = { network: async () => parseNetworkConfig(after()) } as unknown as LeaseStore;
  const network = parseNetworkConfig('{"Network":"10.42.0.0/16","Backend":{"Type":"wireguard","PSK":"hunter2"}}');
  const overlay = { network, refresh } as unknown as Overlay;
  const log = { debug: say('debug'), info: say('info'), warn: say('warn'), error: say('error') };
  return { said, run: () => reloadSurroundings({ log, store, overlay }) };
}

test('what counts at the next acquire is told, and nothing where nothing has changed', async () => {
  const same = surroundings(() => '{"network":"10.42.0.0/16","Backend":{"Type":"wireguard","PSK":"another"}}');
  await same.run();
  expect(same.said).toEqual([]);
  const other = surroundings(() => '{"Network":"10.42.0.0/16","SubnetLen":26,"SubnetMax":"10.42.9.0"}');
  await other.run();
  expect(other.said).toEqual([
    'info the network config has changed: it counts when a lease is acquired ' +
      '{"changed":"subnetLen 24 -> 26, subnetMin 10.42.1.0 -> 10.42.0.64, subnetMax 10.42.255.0 -> 10.42.9.0"}',
  ]);
});

test('one step that fails does not keep the others from being taken', async () => {
  let refreshed = 0;
  const broken = surroundings(
    () => '{"Network"',
    async () => {
      refreshed++;
      throw new PodwireError('SYSTEM', 'the disk is full');
    },
  );
  await broken.run();
  expect(refreshed).toBe(1);
  expect(broken.said).toEqual([
    expect.stringMatching(/^error the network config cannot be read again, .*not valid JSON/),
    'error the subnet file is not written again: the disk is full {}',
  ]);
});
