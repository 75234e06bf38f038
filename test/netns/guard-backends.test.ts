import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { BackendBed } from '../support/backend-bed.js';
import { type Process, until } from '../support/process.js';
import { missing } from '../support/requires.js';

const NEEDS = { root: true, tun: true, commands: ['ip', 'bridge', 'ping'], files: ['dist/cli/main.js'] };

interface Row {
  readonly name: string;
  readonly backend: object;
  readonly more?: object;
  /** Absent: the backend has none of its own. */
  readonly device?: string;
  /** The device is our TUN: it is back with a new data plane, not by a repair. */
  readonly isTun?: boolean;
}

const DUAL = { EnableIPv6: true, IPv6Network: 'fd42::/48' };
const ROWS: readonly Row[] = [
  { name: 'udp', backend: { Type: 'udp' }, device: 'flannel0', isTun: true },
  {
    name: 'vxlan in user space, dual stack',
    backend: { Type: 'vxlan', Mode: 'user' },
    more: DUAL,
    device: 'flannel.1',
    isTun: true,
  },
  { name: 'vxlan by the kernel', backend: { Type: 'vxlan', Mode: 'kernel' }, device: 'flannel.1' },
  { name: 'host-gw', backend: { Type: 'host-gw' } },
];

/** Every backend follows what happens to its host, and loses neither lease nor subnet. */
describe.skipIf(missing(NEEDS)).each(ROWS)('the host under $name', ({ backend, more, device, isTun }) => {
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

  test.skipIf(device === undefined)('its device is removed: packets pass again', async () => {
    const lease = await bed.leases();
    await bed.a.ns.ip('link', 'del', device ?? '');
    await until(
      async () => {
        const { host } = await bed.status(bed.a);
        return isTun === true ? host.reopened === 1 : (host.driftRepaired['link'] ?? 0) > 0;
      },
      { what: 'the device to be made again' },
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
