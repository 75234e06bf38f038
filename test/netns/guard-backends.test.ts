import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { BackendBed } from '../support/backend-bed.js';
import { type Process, until } from '../support/process.js';
import { missing } from '../support/requires.js';

const NEEDS = { root: true, tun: true, commands: ['ip', 'bridge', 'ping'], files: ['dist/bundle/main.cjs'] };

interface Row {
  readonly name: string;
  readonly backend: object;
  readonly more?: object;
  /** What somebody does to it, as an `ip` command. */
  readonly damage: string;
  /** How it is put right: a repair of that kind, or a new data plane. */
  readonly by: 'link' | 'route' | 'reopening';
}

const DUAL = { EnableIPv6: true, IPv6Network: 'fd42::/48' };
const ROWS: readonly Row[] = [
  { name: 'udp', backend: { Type: 'udp' }, damage: 'link del flannel0', by: 'reopening' },
  {
    name: 'vxlan in user space, dual stack',
    backend: { Type: 'vxlan', Mode: 'user' },
    more: DUAL,
    damage: 'link del flannel.1',
    by: 'reopening',
  },
  { name: 'vxlan by the kernel', backend: { Type: 'vxlan', Mode: 'kernel' }, damage: 'link del flannel.1', by: 'link' },
  { name: 'host-gw', backend: { Type: 'host-gw' }, damage: 'route flush proto 111', by: 'route' },
];

/** Every backend follows what happens to its host, and loses neither lease nor subnet. */
describe.skipIf(missing(NEEDS)).each(ROWS)('the host under $name', ({ backend, more, damage, by }) => {
  let bed: BackendBed;
  let agents: readonly Process[];
  let subnets: readonly string[];

  const keys = async (): Promise<string[]> => Object.keys(await bed.leases()).sort();

  beforeAll(async () => {
    bed = await BackendBed.create({ Network: '10.42.0.0/16', ...more, Backend: backend });
    agents = await bed.startBoth();
    await bed.connected();
    subnets = await keys();
  });

  afterAll(() => bed[Symbol.asyncDispose]());

  test(`${damage}: packets pass again`, async () => {
    const lease = await bed.leases();
    await bed.a.ns.ip(...damage.split(' '));
    await until(
      async () => {
        const { host } = await bed.status(bed.a);
        return by === 'reopening' ? host.reopened === 1 : (host.driftRepaired[by] ?? 0) > 0;
      },
      { what: 'the damage to be repaired' },
    );
    await bed.connected();
    expect((await bed.status(bed.a)).host.problems).toEqual([]);
    expect(await bed.leases()).toEqual(lease);
  });

  test('the underlay goes down and up: packets pass again', async () => {
    const [agent] = agents;
    await bed.a.ns.ip('link', 'set', 'eth0', 'down');
    await agent!.output(/the underlay interface eth0 is down/, { from: 'stderr' });
    await bed.a.ns.ip('link', 'set', 'eth0', 'up');
    // IPv6 addresses go with the link.
    await bed.a.ns.ip('address', 'replace', `${bed.a.underlay6}/64`, 'dev', 'eth0', 'nodad');
    await agent!.output(/the underlay interface eth0 is up again/, { from: 'stderr' });
    await bed.connected();
    await until(async () => (await bed.status(bed.a)).host.problems.length === 0, { what: 'nothing to be wrong' });
    expect(await keys()).toEqual(subnets);
  });

  test('the underlay address changes: the other host hears of it, packets pass, the subnet stays', async () => {
    const next = '10.77.0.101';
    await bed.a.ns.ip('address', 'add', `${next}/24`, 'dev', 'eth0');
    await bed.a.ns.ip('address', 'del', `${bed.a.underlay}/24`, 'dev', 'eth0');
    // The second address of a network goes with the first.
    await bed.a.ns.ip('address', 'replace', `${next}/24`, 'dev', 'eth0');
    await until(async () => (await bed.status(bed.b)).leases[0]?.publicIp === next, {
      what: 'the other host to hear it',
    });
    await bed.connected();
    expect((await bed.status(bed.a)).host.problems).toEqual([]);
    expect(await keys()).toEqual(subnets);
    expect(agents.every(({ running }) => running)).toBe(true);
  });
});
