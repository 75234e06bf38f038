import { existsSync, readFileSync } from 'node:fs';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { type HostEvents, HostMonitor } from '../../src/host/monitor.js';
import { NetNs, veth } from '../support/netns.js';
import { root, until } from '../support/process.js';
import { missing } from '../support/requires.js';

/** Processes inside the namespace whose command line has this text. */
async function running(ns: NetNs, text: string): Promise<number[]> {
  return (await ns.pids()).filter((pid) => {
    const file = `/proc/${pid}/cmdline`;
    return existsSync(file) && readFileSync(file, 'utf8').replaceAll('\0', ' ').startsWith(text);
  });
}

describe.skipIf(missing({ root: true, commands: ['ip', 'sh'], files: ['dist/host/monitor.js'] }))('HostMonitor', () => {
  let ns: NetNs;
  let peer: NetNs;
  let monitor: HostMonitor | undefined;
  let notices: string[];
  let bursts: HostEvents[];

  beforeEach(async () => {
    ns = await NetNs.create('wa', 'mon');
    peer = await NetNs.create('wa', 'peer');
    await veth({ ns, name: 'eth0', address: '10.77.0.1/24' }, { ns: peer, name: 'eth0', address: '10.77.0.2/24' });
    notices = [];
    bursts = [];
  });

  afterEach(async () => {
    await monitor?.close();
    monitor = undefined;
    await ns[Symbol.asyncDispose]();
    await peer[Symbol.asyncDispose]();
  });

  const start = async (): Promise<HostMonitor> => {
    monitor = new HostMonitor({
      enter: ['ip', 'netns', 'exec', ns.name],
      onNotice: (level, message) => notices.push(`${level}: ${message}`),
    });
    monitor.listen();
    monitor.subscribe((events) => bursts.push(events));
    await until(() => monitor!.stats().running && bursts.some(({ everything }) => everything), { what: 'the start' });
    bursts.length = 0;
    return monitor;
  };

  const heard = (what: string, test: (events: HostEvents) => boolean): Promise<true> =>
    until(() => (bursts.some(test) ? true : undefined), { what });

  test('links, addresses, routes, neighbours and forwarding of both families, by name', async () => {
    await ns.sysctl({ 'net.ipv4.ip_forward': 0 });
    await start();
    await ns.ip('link', 'set', 'eth0', 'mtu', '1400');
    await heard('the link', ({ links }) => links.has('eth0'));
    await ns.ip('address', 'add', 'fd77::1/64', 'dev', 'eth0', 'nodad');
    await heard('the address', ({ addresses }) => addresses.has('eth0'));
    await ns.ip('route', 'add', '10.42.0.0/16', 'via', '10.77.0.2');
    await heard('the route', (e) => e.destinations.has('10.42.0.0/16') && e.routeDevices.has('eth0'));
    await ns.ip('route', 'add', 'blackhole', 'fd42::/48');
    await heard('the IPv6 route', ({ destinations }) => destinations.has('fd42::/48'));
    await ns.ip('route', 'add', 'default', 'via', '10.77.0.2');
    await heard('the default route', ({ destinations }) => destinations.has('default'));
    bursts.length = 0;
    await ns.ip('route', 'del', '10.42.0.0/16');
    await heard('its end', ({ destinations }) => destinations.has('10.42.0.0/16'));
    await ns.ip('neigh', 'replace', '10.77.0.9', 'lladdr', '02:00:00:00:00:09', 'dev', 'eth0');
    await heard('the neighbour', ({ neighbours }) => neighbours.has('eth0'));
    await ns.sysctl({ 'net.ipv4.ip_forward': 1 });
    await heard('forwarding', ({ forwarding }) => forwarding);
    await ns.ip('link', 'del', 'eth0');
    await heard('the end of the link', ({ links }) => links.has('eth0'));
    expect(bursts.every(({ everything }) => !everything)).toBe(true);
    expect(notices).toEqual([]);
  });

  test('what happens close together is one burst', async () => {
    await start();
    await ns.ok('sh', ['-c', 'for i in $(seq 1 200); do echo "route add 10.42.$i.0/24 dev eth0"; done | ip -batch -']);
    await heard('the last one', ({ destinations }) => destinations.has('10.42.200.0/24'));
    expect(bursts.length).toBeLessThan(100);
  });

  test('a killed child is started again, told once, and asks for a look at everything', async () => {
    const { stats } = { stats: (await start()).stats.bind(monitor) };
    const [pid = 0] = await running(ns, 'ip -o monitor');
    process.kill(pid, 'SIGKILL');
    await heard('the new start', ({ everything }) => everything);
    expect(stats()).toMatchObject({ running: true, restarts: 1 });
    expect(notices).toEqual([
      expect.stringMatching(/^warn: ip monitor stopped .*noticed late/),
      'info: kernel events are heard again',
    ]);
    await ns.ip('link', 'set', 'eth0', 'mtu', '1400');
    await heard('events again', ({ links }) => links.has('eth0'));
    const [shell = 0] = await running(ns, 'sh -c ip -o monitor');
    bursts.length = 0;
    process.kill(shell, 'SIGKILL');
    await heard('the start after the shell was killed', ({ everything }) => everything);
    expect(stats().restarts).toBe(2);
  });

  test('events that the kernel had to drop ask for a look at everything', async () => {
    await start();
    const [pid = 0] = await running(ns, 'ip -o monitor');
    process.kill(pid, 'SIGSTOP');
    const routes = 'seq 1 6000 | while read i; do echo "route add 10.$((i / 250)).$((i % 250)).1/32 dev eth0"; done';
    await ns.ok('sh', ['-c', `${routes} | ip -batch -`]);
    process.kill(pid, 'SIGCONT');
    await heard('the loss', ({ everything }) => everything);
    expect(monitor!.stats()).toMatchObject({ running: true, restarts: 0 });
    expect(monitor!.stats().overruns).toBeGreaterThan(0);
  });

  test('a child that cannot be started is told once and tried at growing distances', async () => {
    monitor = new HostMonitor({
      enter: ['ip', 'netns', 'exec', `${ns.name}-none`],
      onNotice: (level, message) => notices.push(`${level}: ${message}`),
    });
    monitor.listen();
    await until(() => monitor!.stats().restarts >= 3, { what: 'three starts' });
    expect(notices).toEqual([expect.stringMatching(/^warn: ip monitor stopped \(.+\): changes/)]);
  });

  test('closing ends every process, and so does the death of the one that listens', async () => {
    await start();
    expect(await running(ns, 'ip -o monitor')).toHaveLength(1);
    await monitor!.close();
    expect(await running(ns, '')).toEqual([]);
    const child = ns.spawn(process.execPath, [`${root}/test/support/monitor-child.mjs`]);
    await child.output(/"everything":true/);
    expect(await running(ns, 'ip -o monitor')).toHaveLength(1);
    await child.stop('SIGKILL');
    await until(async () => (await running(ns, '')).length === 0, { what: 'the orphans to end' });
  });
});
