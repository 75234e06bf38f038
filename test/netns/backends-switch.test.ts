import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { BackendBed } from '../support/backend-bed.js';
import { type Process, until } from '../support/process.js';
import { missing } from '../support/requires.js';

const NEEDS = { root: true, tun: true, commands: ['ip', 'bridge', 'ping'], files: ['dist/bundle/main.cjs'] };

describe.skipIf(missing(NEEDS))('a network config that changes while the agents run', () => {
  let bed: BackendBed;
  let agents: Process[];

  const config = (backend: object): object => ({ Network: '10.42.0.0/16', Backend: backend });

  beforeAll(async () => {
    bed = await BackendBed.create(config({ Type: 'udp' }));
    agents = await bed.startBoth();
    await bed.connected();
  });

  afterAll(() => bed[Symbol.asyncDispose]());

  const devices = async (): Promise<string[]> => {
    const found = JSON.parse(await bed.a.ns.ip('-j', 'link', 'show')) as { ifname: string }[];
    return found.map(({ ifname }) => ifname).filter((name) => name.startsWith('flannel'));
  };

  test.each([
    ['vxlan in user space', { Type: 'vxlan', Mode: 'user' }, ['flannel.1'], 1450],
    ['another VNI', { Type: 'vxlan', Mode: 'user', VNI: 7 }, ['flannel.7'], 1450],
    ['vxlan by the kernel', { Type: 'vxlan', Mode: 'kernel' }, ['flannel.1'], 1450],
    ['host-gw', { Type: 'host-gw' }, [], 1500],
    [
      'vxlan by the kernel, without the tunnel',
      { Type: 'vxlan', Mode: 'kernel', DirectRouting: true },
      ['flannel.1'],
      1450,
    ],
    ['back to udp', { Type: 'udp' }, ['flannel0'], 1472],
  ])(
    'to %s, in the same process: nothing of the old backend is left, the subnets stay',
    async (_what, backend, names, mtu) => {
      const subnets = Object.keys(await bed.leases());
      const before = await Promise.all([bed.subnet(bed.a), bed.subnet(bed.b)]);
      await bed.configure(config(backend));
      for (const agent of agents) agent.child.kill('SIGHUP');
      await until(
        async () => {
          const now = await Promise.all([bed.subnet(bed.a), bed.subnet(bed.b)]);
          return now.every(({ MTU }) => MTU === String(mtu)) && (await devices()).join() === names.join();
        },
        { what: `devices ${names.join()} and MTU ${mtu}`, timeoutMs: 15_000 },
      );
      await bed.connected();
      expect(Object.keys(await bed.leases())).toEqual(subnets);
      const after = await Promise.all([bed.subnet(bed.a), bed.subnet(bed.b)]);
      expect(after.map(({ SUBNET }) => SUBNET)).toEqual(before.map(({ SUBNET }) => SUBNET));
      const [theirs = ''] = (await bed.subnet(bed.b))['SUBNET']!.split('.1/');
      const routes = (await bed.a.ns.ip('-N', 'route', 'show', 'proto', '111'))
        .trim()
        .split('\n')
        .map((line) => line.trim());
      expect(routes).toEqual([
        backend.Type === 'udp' || ('Mode' in backend && backend.Mode === 'user')
          ? `10.42.0.0/16 dev ${names[0] ?? ''} scope global`.replace(' scope global', '')
          : expect.stringMatching(new RegExp(`^${theirs}\\.0/24 via `)),
      ]);
    },
  );

  test('a config that cannot be read is told, and nothing changes', async () => {
    const [agent] = agents;
    const lengthBefore = agent!.stderr.length;
    await writeFile(join(bed.store, 'config'), '{"Network":');
    agent!.child.kill('SIGHUP');
    await until(() => agent!.stderr.slice(lengthBefore).includes('the network config cannot be read'), {
      what: 'the line about the config',
    });
    await bed.connected();
    await bed.configure(config({ Type: 'udp' }));
  });

  test('a backend that this host has not got: told, tried again, and followed when it is mended', async () => {
    const [agent] = agents;
    await bed.configure(config({ Type: 'ipsec' }));
    agent!.child.kill('SIGHUP');
    await agent!.output(/the new network config cannot be followed, trying again: .*ipsec.*wireguard/, {
      from: 'stderr',
    });
    await bed.configure(config({ Type: 'udp' }));
    await bed.connected();
    expect(agents.every((one) => one.running)).toBe(true);
  });
});
