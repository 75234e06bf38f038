import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { ready } from '../support/agents.js';
import { attributes, BackendBed } from '../support/backend-bed.js';
import { type Process, until } from '../support/process.js';
import { missing } from '../support/requires.js';

const NEEDS = { root: true, tun: true, commands: ['ip', 'bridge', 'ping', 'iperf3'], files: ['dist/bundle/main.cjs'] };
const THEIR_MAC = '0e:66:77:88:99:aa';
const OUR_MAC = '0e:11:22:33:44:55';

/**
 * Host B has the kernel's device set up by hand as flannel does, with the subnet 10.42.99.0/24; host A is podwire's.
 */
describe.skipIf(missing(NEEDS))('vxlan beside the kernel’s device as flannel makes it', () => {
  let bed: BackendBed;
  let agent: Process | undefined;
  let base = '';

  const config = (more: object = {}): object => ({
    Network: '10.42.0.0/16',
    SubnetMin: '10.42.7.0',
    SubnetMax: '10.42.7.0',
    Backend: { Type: 'vxlan', ...more },
  });
  /** flannel's own commands on a host, for one peer (contract 5). */
  const device = async (on: 'a' | 'b', mac: string, address: string): Promise<void> => {
    const { ns, underlay } = bed[on];
    const vxlan = ['type', 'vxlan', 'id', '1', 'local', underlay, 'dev', 'eth0', 'dstport', '8472', 'nolearning'];
    await ns.ip('link', 'add', 'flannel.1', 'address', mac, 'mtu', '1450', ...vxlan);
    await ns.ip('address', 'add', `${address}/32`, 'dev', 'flannel.1');
    await ns.ip('link', 'set', 'flannel.1', 'up');
  };
  const peer = async (on: 'a' | 'b', subnet: string, mac: string, remote: string): Promise<void> => {
    const { ns } = bed[on];
    await ns.ip('neigh', 'replace', subnet, 'lladdr', mac, 'dev', 'flannel.1', 'nud', 'permanent');
    await ns.ok('bridge', ['fdb', 'replace', mac, 'dev', 'flannel.1', 'dst', remote, 'self', 'permanent']);
    await ns.ip('route', 'replace', `${subnet}/24`, 'via', subnet, 'dev', 'flannel.1', 'onlink');
  };
  const start = async (...flags: readonly string[]): Promise<Process> => {
    agent = bed.start(bed.a, ...flags);
    await ready(agent);
    base = (await bed.subnet(bed.a))['SUBNET']!.replace(/\.1\/24$/, '');
    await bed.pods(bed.a);
    return agent;
  };
  const stop = async (): Promise<void> => {
    await agent?.stop('SIGKILL');
    agent = undefined;
  };
  const reached = (): Promise<unknown> =>
    until(
      async () =>
        (await bed.a.ns.run('ping', ['-n', '-c1', '-W1', '-M', 'do', '-s', '1422', '10.42.99.1'])).code === 0 &&
        (await bed.b.ns.run('ping', ['-n', '-c1', '-W1', '-M', 'do', '-s', '1422', '-I', '10.42.99.1', `${base}.1`]))
          .code === 0,
      { what: 'full-size pings both ways' },
    );
  const own = async (): Promise<string> => (await bed.leases())['10.42.7.0-24'] ?? '';
  const links = async (): Promise<string> => bed.a.ns.ip('-d', 'link', 'show', 'dev', 'flannel.1');
  const stateOf = async (subnet: string) =>
    (await bed.status(bed.a)).leases.find((lease) => lease.subnet === `${subnet}/24`);

  beforeAll(async () => {
    bed = await BackendBed.create(config());
    await device('b', THEIR_MAC, '10.42.99.0');
    await bed.b.ns.ip('link', 'add', 'cni0', 'type', 'bridge');
    await bed.b.ns.ip('address', 'add', '10.42.99.1/24', 'dev', 'cni0');
    await bed.b.ns.ip('link', 'set', 'cni0', 'mtu', '1450', 'up');
    await bed.putLease(
      '10.42.99.0-24',
      attributes(bed.b.underlay, 'vxlan', { backendData: { VNI: 1, VtepMAC: THEIR_MAC } }),
    );
    // As flanneld would have left it: a device with entries for B, and for a host that has gone since.
    await device('a', OUR_MAC, '10.42.7.0');
    await peer('a', '10.42.99.0', THEIR_MAC, bed.b.underlay);
    await peer('a', '10.42.98.0', '0e:00:00:00:00:98', '10.77.0.98');
    await peer('b', '10.42.7.0', OUR_MAC, bed.a.underlay);
  });

  afterAll(() => bed[Symbol.asyncDispose]());

  test('auto takes the device over: its MAC stays, no packet is lost, what was left over goes', async () => {
    const index = JSON.parse(await bed.a.ns.ip('-j', 'link', 'show', 'dev', 'flannel.1')) as { ifindex: number }[];
    await bed.a.ns.ip('link', 'add', 'cni0', 'type', 'bridge');
    await bed.a.ns.ip('address', 'add', '10.42.7.1/24', 'dev', 'cni0');
    await bed.a.ns.ip('link', 'set', 'cni0', 'up');
    const pings = bed.a.ns.spawn('ping', ['-n', '-i', '0.01', '-I', '10.42.7.1', '10.42.99.1']);
    await pings.output(/icmp_seq=10 /);
    const running = await start();
    expect(running.stderr).toMatch(/carried by the kernel's device: flannel\.1 is there with the same parameters/);
    await until(async () => (await bed.a.ns.ip('route', 'show', '10.42.98.0/24')) === '', { what: 'the stale route' });
    await until(async () => !(await bed.a.ns.ok('bridge', ['fdb', 'show', 'dev', 'flannel.1'])).includes('00:98'), {
      what: 'the stale FDB entry to go',
    });
    expect(await bed.a.ns.ip('neigh', 'show', '10.42.98.0', 'dev', 'flannel.1')).toBe('');
    await reached();
    expect((await pings.stop('SIGINT')).stdout).toMatch(/ 0% packet loss/);
    expect(JSON.parse(await bed.a.ns.ip('-j', 'link', 'show', 'dev', 'flannel.1'))).toMatchObject(index);
    expect(await own()).toContain(`"BackendData":{"VNI":1,"VtepMAC":"${OUR_MAC}"}`);
  });

  test.each([
    ['the device is deleted', ['ip', 'link', 'del', 'flannel.1']],
    ['its MAC is changed', ['ip', 'link', 'set', 'flannel.1', 'address', '0e:de:ad:be:ef:00']],
    ['its MTU is changed', ['ip', 'link', 'set', 'flannel.1', 'mtu', '1280']],
    ['it is set down', ['ip', 'link', 'set', 'flannel.1', 'down']],
    ['its address is removed', ['ip', 'address', 'flush', 'dev', 'flannel.1']],
    ['a route is removed', ['ip', 'route', 'del', '10.42.99.0/24']],
    ['a neighbour is removed', ['ip', 'neigh', 'del', '10.42.99.0', 'dev', 'flannel.1']],
    ['an FDB entry is removed', ['bridge', 'fdb', 'del', THEIR_MAC, 'dev', 'flannel.1', 'dst', '10.77.0.2']],
  ])('%s: put right within a second', async (_what, [command = '', ...args]) => {
    const state = async (): Promise<string[]> => [
      (await bed.a.ns.ip('-o', 'link', 'show', 'dev', 'flannel.1')).replace(/^\d+/, ''),
      (await bed.a.ns.ip('-4', '-o', 'address', 'show', 'dev', 'flannel.1')).replace(/^\d+/, ''),
      await bed.a.ns.ip('route', 'show', '10.42.99.0/24'),
      await bed.a.ns.ip('neigh', 'show', '10.42.99.0', 'dev', 'flannel.1'),
      await bed.a.ns.ok('bridge', ['fdb', 'show', 'dev', 'flannel.1']),
    ];
    const before = await state();
    await bed.a.ns.ok(command, args);
    const changedAt = performance.now();
    await until(
      async () => {
        const now = await state().catch(() => []);
        return JSON.stringify(now) === JSON.stringify(before);
      },
      { what: 'the state from before', timeoutMs: 5_000 },
    );
    expect(performance.now() - changedAt).toBeLessThan(1_000);
    await reached();
  });

  test('a peer with a new MAC is followed, and its old FDB entry goes', async () => {
    const mac = '0e:66:77:88:99:ab';
    await bed.b.ns.ip('link', 'set', 'flannel.1', 'address', mac);
    await bed.putLease('10.42.99.0-24', attributes(bed.b.underlay, 'vxlan', { backendData: { VtepMAC: mac, VNI: 1 } }));
    await until(async () => (await bed.a.ns.ok('bridge', ['fdb', 'show', 'dev', 'flannel.1'])).includes(mac), {
      what: 'the new entry',
    });
    await until(async () => !(await bed.a.ns.ok('bridge', ['fdb', 'show', 'dev', 'flannel.1'])).includes(THEIR_MAC), {
      what: 'the old entry to go',
    });
    await peer('b', '10.42.7.0', OUR_MAC, bed.a.underlay);
    await reached();
  });

  test.each([
    ['no BackendData', undefined, 'it has no BackendData, so its VtepMAC is not known'],
    ['another VNI', { VNI: 2, VtepMAC: '0e:01:01:01:01:01' }, 'its VNI is 2, ours is 1'],
    ['no MAC', { VNI: 1 }, 'its BackendData names no VtepMAC'],
    ['a text in its place', 'x', 'its BackendData is the string "x", not an object'],
    ['a MAC that is none', { VNI: 1, VtepMAC: 'x' }, 'its VtepMAC is the string "x", which is no hardware address'],
    ['a group MAC', { VNI: 1, VtepMAC: '01:00:5e:00:00:01' }, "its VtepMAC 01:00:5e:00:00:01 is no host's address"],
    ['our own MAC', { VNI: 1, VtepMAC: OUR_MAC }, `its VtepMAC ${OUR_MAC} is our own`],
  ])('a lease with %s is ignored with one clear line', async (_what, backendData, reason) => {
    const key = '10.42.200.0-24';
    await bed.putLease(key, attributes('10.77.0.200', 'vxlan', backendData === undefined ? {} : { backendData }));
    const seen = await until(async () => await stateOf('10.42.200.0'), { what: 'the lease to be shown' });
    expect(seen).toMatchObject({ state: 'ignored', reason });
    await bed.removeLease(key);
    await until(async () => (await stateOf('10.42.200.0')) === undefined, { what: 'it to go' });
  });

  test('a second host with the MAC of another is shown as failed, and follows when the first is gone', async () => {
    const data = { backendData: { VNI: 1, VtepMAC: '0e:00:00:00:00:42' } };
    await bed.putLease('10.42.201.0-24', attributes('10.77.0.201', 'vxlan', data));
    await until(async () => (await stateOf('10.42.201.0'))?.state === 'routed', { what: 'the first' });
    await bed.putLease('10.42.202.0-24', attributes('10.77.0.202', 'vxlan', data));
    const failed = await until(
      async () => {
        const seen = await stateOf('10.42.202.0');
        return seen?.state === 'failed' ? seen : undefined;
      },
      { what: 'the second to fail' },
    );
    expect(failed.reason).toBe(
      'its VtepMAC 0e:00:00:00:00:42 is also that of 10.77.0.201: two hosts with the same MAC',
    );
    expect(await bed.a.ns.ip('route', 'show', '10.42.202.0/24')).toBe('');
    await bed.removeLease('10.42.201.0-24');
    await until(async () => (await bed.a.ns.ip('route', 'show', '10.42.202.0/24')) !== '', { what: 'the second' });
    expect(await bed.a.ns.ok('bridge', ['fdb', 'show', 'dev', 'flannel.1'])).toContain(
      '0e:00:00:00:00:42 dst 10.77.0.202 self permanent',
    );
    await bed.removeLease('10.42.202.0-24');
  });

  test('over to user space and back: MAC and lease stay, the peers notice nothing', async () => {
    const before = await own();
    await stop();
    const user = await start('--vxlan-mode=user');
    expect(user.stderr).toMatch(/took over from the kernel's vxlan device/);
    expect(await links()).toMatch(/ tun /);
    await reached();
    expect(await own()).toBe(before);
    await stop();
    await start('--vxlan-mode=kernel');
    expect(await links()).toMatch(/vxlan id 1 /);
    await reached();
    expect(await own()).toBe(before);
  });

  test('auto on a host without /dev/net/tun is the kernel’s device, said aloud', async () => {
    await stop();
    await bed.a.ns.ip('link', 'del', 'flannel.1').catch(() => undefined);
    agent = bed.startWithoutTun(bed.a);
    await ready(agent);
    expect(agent.stderr).toMatch(/carried by the kernel's device: there is no \/dev\/net\/tun/);
    await reached();
  });

  test('user space and the kernel’s device: TCP both ways', async () => {
    await stop();
    await start('--vxlan-mode=user');
    await reached();
    await using server = bed.b.ns.spawn('iperf3', ['-s', '-B', '10.42.99.1', '--forceflush']);
    await server.output(/listening/);
    for (const reverse of [[], ['-R']]) {
      const args = ['-c', '10.42.99.1', '-B', `${base}.1`, '-n', '64M', '-C', 'cubic', '-J', ...reverse];
      const { end } = JSON.parse(await bed.a.ns.ok('iperf3', args)) as { end: { sum_received: { bytes: number } } };
      expect(end.sum_received.bytes).toBeGreaterThan(60_000_000);
    }
  });

  test.each([
    [{ VNI: 16_777_216 }, 'Backend.VNI is the number 16777216; give a whole number from 0 to 16777215'],
    [{ VNI: '1' }, 'Backend.VNI is the string "1"; give a whole number from 0 to 16777215'],
    [{ Port: 70_000 }, 'Backend.Port is the number 70000; give a whole number from 0 to 65535'],
    [{ MTU: 100 }, "Backend.MTU is the number 100; give the underlay's MTU in bytes, 576 or more, or leave it out"],
    [{ Mode: 'fast' }, 'Backend.Mode is the string "fast"; give one of auto, user, kernel'],
    [{ DirectRouting: 'yes' }, 'Backend.DirectRouting is the string "yes"; give true or false'],
    [{ GBP: true, Mode: 'user' }, 'Backend.GBP needs the kernel'],
  ])('a config with %j ends the start with one line', async (more, line) => {
    await stop();
    await bed.configure(config(more));
    const ended = await bed.start(bed.a).finished;
    expect(ended.code).toBe(1);
    expect(ended.stderr).toContain(JSON.stringify(line).slice(1, -1));
    await bed.configure(config());
  });
});
