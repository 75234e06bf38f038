import { afterEach, describe, expect, test } from 'vitest';
import { ready } from '../support/agents.js';
import { attributes, BackendBed } from '../support/backend-bed.js';
import { until } from '../support/process.js';
import { missing } from '../support/requires.js';

const NEEDS = { root: true, tun: true, commands: ['ip', 'bridge'], files: ['dist/bundle/main.cjs'] };
const NEAR = { key: '10.42.201.0-24', prefix: '10.42.201.0/24', publicIp: '10.77.0.201', mac: '0e:00:00:00:02:01' };
/** Behind host B: reachable, but not on the underlay's own link. */
const FAR = { key: '10.42.202.0-24', prefix: '10.42.202.0/24', publicIp: '10.99.0.202', mac: '0e:00:00:00:02:02' };

/** Leases of two hosts that do not exist: one would be on host A's link, one behind a gateway. */
describe.skipIf(missing(NEEDS))('next hops on the same link and behind a gateway', () => {
  let bed: BackendBed;

  const start = async (backend: object): Promise<void> => {
    bed = await BackendBed.create({ Network: '10.42.0.0/16', Backend: backend });
    await bed.a.ns.ip('route', 'add', '10.99.0.0/24', 'via', bed.b.underlay);
    const type = (backend as { Type: string }).Type;
    for (const { key, publicIp, mac } of [NEAR, FAR]) {
      const data = type === 'vxlan' ? { backendData: { VNI: 1, VtepMAC: mac } } : {};
      await bed.putLease(key, attributes(publicIp, type, data));
    }
    await ready(bed.start(bed.a));
  };
  const route = async (prefix: string): Promise<string> => (await bed.a.ns.ip('-N', 'route', 'show', prefix)).trim();
  const becomes = (prefix: string, wanted: RegExp): Promise<unknown> =>
    until(async () => wanted.test(await route(prefix)), { what: `${prefix}: ${String(wanted)}`, timeoutMs: 20_000 });

  afterEach(() => bed[Symbol.asyncDispose]());

  test('host-gw: the one on the link is routed, the other refused with the reason', async () => {
    await start({ Type: 'host-gw' });
    await becomes(NEAR.prefix, /^10\.42\.201\.0\/24 via 10\.77\.0\.201 dev eth0 proto 111$/);
    const far = await until(
      async () =>
        (await bed.status(bed.a)).leases.find(({ subnet, state }) => subnet === FAR.prefix && state === 'failed'),
      { what: 'the lease to fail' },
    );
    expect(far.reason).toMatch(
      /^the next hop 10\.99\.0\.202 is not on the same link as eth0 .*: host-gw needs all hosts in one layer 2 network, elsewhere use the backend vxlan with DirectRouting$/,
    );
    expect(await route(FAR.prefix)).toBe('');
  });

  test('host-gw: one that comes to be on the link is routed then', async () => {
    await start({ Type: 'host-gw' });
    await becomes(NEAR.prefix, /via 10\.77\.0\.201/);
    await bed.a.ns.ip('address', 'add', '10.99.0.1/24', 'dev', 'eth0');
    await becomes(FAR.prefix, /via 10\.99\.0\.202 dev eth0/);
  });

  test.each(['user', 'kernel'])(
    'DirectRouting, mode %s: without the tunnel on the link, through it elsewhere',
    async (mode) => {
      await start({ Type: 'vxlan', Mode: mode, DirectRouting: true });
      await becomes(NEAR.prefix, /^10\.42\.201\.0\/24 via 10\.77\.0\.201 dev eth0 proto 111$/);
      if (mode === 'kernel')
        await becomes(FAR.prefix, /^10\.42\.202\.0\/24 via 10\.42\.202\.0 dev flannel\.1 proto 111 onlink$/);
      else
        expect([await route(FAR.prefix), await route('10.42.0.0/16')]).toEqual([
          '',
          '10.42.0.0/16 dev flannel.1 proto 111',
        ]);
      // The peer moves onto the link, and away again.
      await bed.a.ns.ip('route', 'replace', '10.99.0.0/24', 'dev', 'eth0');
      await becomes(FAR.prefix, /^10\.42\.202\.0\/24 via 10\.99\.0\.202 dev eth0 proto 111$/);
      await bed.a.ns.ip('route', 'replace', '10.99.0.0/24', 'via', bed.b.underlay);
      await becomes(FAR.prefix, mode === 'kernel' ? /dev flannel\.1/ : /^$/);
    },
  );
});
