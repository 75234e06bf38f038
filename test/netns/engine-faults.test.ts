/**
 * Faults of the underlay while packets flow: a device that loses its offloads, a smaller MTU, a link that goes away, a
 * dead peer, forged ICMP, full queues. Each is counted where it belongs, nothing else suffers, and what was refused for
 * a while passes again.
 */
import { afterAll, beforeAll, beforeEach, afterEach, describe, expect, it } from 'vitest';
import type { Host } from '../support/engine-lab.js';
import { EngineLab, answers, ethtool, ping } from '../support/engine-lab.js';
import { ipv4, icmp, toHex, udpPacket } from '../support/packets.js';
import { until } from '../support/process.js';
import type { Remote } from '../support/remote.js';
import { missing } from '../support/requires.js';

type Stats = Awaited<ReturnType<Remote['stats']>>;
const MIB = 1 << 20;
const needs = { root: true, tun: true, commands: ['ip', 'ping', 'ethtool'], files: ['dist/dataplane/dataplane.js'] };

describe.skipIf(missing(needs))('faults of the underlay', () => {
  let lab: EngineLab;
  let a: Host;
  let b: Host;
  let c: Host;
  let podA: Remote;
  let podB: Remote;
  let engine: Remote;
  let peer: Remote;
  let tcpPort: number;
  let echoPort: number;

  beforeAll(async () => {
    lab = await EngineLab.create(3);
    [a, b, c] = lab.hosts as [Host, Host, Host];
    podA = await lab.remote(a.pod);
    podB = await lab.remote(b.pod);
    tcpPort = await podB.tcpListen(b.podAddress);
    echoPort = await podB.udpListen(b.podAddress, 0, true);
  });
  beforeEach(async () => {
    engine = await lab.remote(a.ns);
    peer = await lab.remote(b.ns);
    await lab.open(engine, a, { workers: 1, sourcePort: 'fixed' });
    await lab.open(peer, b, { workers: 1 });
  });
  afterEach(async () => {
    // Whatever a test broke and, failing, did not mend.
    await a.ns.run('ip', ['route', 'del', 'blackhole', `${b.underlay}/32`]);
    await a.ns.ip('link', 'set', 'eth0', 'mtu', '1500', 'up');
    await ethtool(a.ns, 'eth0', { tx: true });
    await podA.call('udpFloodStop');
    await engine[Symbol.asyncDispose]();
    await peer[Symbol.asyncDispose]();
  });
  afterAll(async () => await lab[Symbol.asyncDispose]());

  const exchange = (count: number, size = 100) =>
    podA.udpExchange({ address: b.podAddress, port: echoPort, count, size, patienceMs: 5000 });
  const large = (count: number) =>
    answers(a.pod, '-c', String(count), '-i', '0.01', '-W', '1', '-M', 'do', '-s', '1444', b.podAddress);
  const bulk = async (): Promise<void> => {
    const { sent, arrived } = await podA.tcpSend(b.podAddress, tcpPort, 8 * MIB);
    expect(arrived).toEqual(sent);
  };

  it('goes on when the device loses its offloads', async () => {
    await bulk();
    const before = await engine.quiet();
    expect(before.totals.fallbackUdpSegment).toBe(0);
    // Linux before 6.11 refuses UDP_SEGMENT on such a device (EIO): eight times, then it is left in peace.
    await ethtool(a.ns, 'eth0', { tx: false });
    await bulk();
    expect(await large(3)).toBe(3);
    const { fallbackUdpSegment = 0, ...changes } = await engine.changes(before);
    expect(fallbackUdpSegment).toBeLessThanOrEqual(24);
    expect(Object.keys(changes).filter((name) => name.startsWith('drop'))).toEqual([]);
    await ethtool(a.ns, 'eth0', { tx: true });
    await bulk();
  });

  /** Sends to a closed port of pod b while the worker stands still, so that it finds all of them at once. */
  async function atOnce(count: number, size: number): Promise<void> {
    engine.process.child.kill('SIGSTOP');
    await podA.udpSend({ address: b.podAddress, port: 9, datagrams: Array<string>(count).fill('5a'.repeat(size)) });
    engine.process.child.kill('SIGCONT');
  }

  /** Holds the counters against what is wanted, refused UDP_SEGMENT sends apart: how many there are depends on timing. */
  async function expectChanges(
    before: Stats,
    wanted: Readonly<Record<string, number>>,
    fallback: string,
  ): Promise<void> {
    const seen = await until(
      async () => {
        const { [fallback]: refused = 0, ...changes } = await engine.changes(before);
        const done = Object.entries(wanted).every(([name, value]) => (changes[name] ?? 0) >= value);
        return done && { refused, changes };
      },
      { what: JSON.stringify(wanted) },
    );
    expect(seen.changes).toEqual(wanted);
    expect(seen.refused).toBeGreaterThan(0);
    expect(seen.refused).toBeLessThan(50);
  }

  it('goes on after UDP_SEGMENT sends and their datagrams were refused (EINVAL)', async () => {
    await bulk();
    const before = await engine.quiet();
    await a.ns.ip('route', 'add', 'blackhole', `${b.underlay}/32`);
    await atOnce(300, 500);
    await expectChanges(before, { dropSendError: 300 }, 'fallbackUdpSegment');
    await a.ns.ip('route', 'del', 'blackhole', `${b.underlay}/32`);
    await bulk();
    expect(await large(3)).toBe(3);
  });

  it('counts what a smaller underlay MTU refuses (EMSGSIZE), and only that', async () => {
    expect(await large(3)).toBe(3);
    const before = await engine.quiet();
    await a.ns.ip('link', 'set', 'eth0', 'mtu', '1400');
    expect(await large(5)).toBe(0);
    expect(await engine.reached(before, { dropSendTooBig: 5 })).toEqual({ dropSendTooBig: 5 });
    await atOnce(200, 1400);
    await expectChanges(before, { dropSendTooBig: 205 }, 'fallbackUdpSegment');
    expect((await exchange(10, 1000)).answered).toBe(10);
    await a.ns.ip('link', 'set', 'eth0', 'mtu', '1500');
    expect(await large(3)).toBe(3);
  });

  it('counts what finds no way while the link is down, and goes on when it is back', async () => {
    expect((await exchange(3)).answered).toBe(3);
    const before = await engine.quiet();
    await a.ns.ip('link', 'set', 'eth0', 'down');
    await podA.udpSend({ address: b.podAddress, port: 9, datagrams: Array<string>(50).fill('00') });
    expect(await engine.reached(before, { dropSendError: 50 })).toEqual({ dropSendError: 50 });
    await a.ns.ip('link', 'set', 'eth0', 'up');
    expect((await exchange(5)).answered).toBe(5);
    expect((await engine.stats()).workers).toMatchObject([{ state: 'running', restarts: 0 }]);
  });

  it('counts what the kernel does not take while the TUN is down', async () => {
    await a.ns.ip('link', 'set', 'flannel0', 'down');
    const before = await engine.quiet();
    const packet = toHex(udpPacket({ src: b.podAddress, dst: a.podAddress, dport: 9, payload: [1] }));
    await using world = await lab.remote(c.ns);
    await engine.routes([[b.subnet, { address: b.underlay, senders: [c.underlay] }]]);
    engine.process.child.kill('SIGSTOP');
    await world.udpSend({ address: a.underlay, port: 8285, datagrams: Array<string>(20).fill(packet) });
    engine.process.child.kill('SIGCONT');
    expect(await engine.reached(before, { dropTunError: 20 })).toEqual({ dropTunError: 20 });
    await a.ns.ip('link', 'set', 'flannel0', 'up');
    await a.ns.ip('route', 'replace', '10.244.0.0/16', 'dev', 'flannel0');
    expect((await exchange(5)).answered).toBe(5);
  });

  it('is not disturbed by a dead peer’s port unreachable', async () => {
    // Host c has no data plane: its kernel answers every datagram with an ICMP error to the very socket we send from.
    await engine.routes([...lab.routes(a)]);
    const before = await engine.quiet();
    const flood = { address: c.podAddress, port: 9, size: 64 };
    await podA.call('udpFlood', flood);
    const { answered, lost } = await exchange(300);
    await podA.call('udpFloodStop');
    const { sent } = await podA.event('flooded');
    expect(answered).toBe(300);
    expect(lost).toBeLessThanOrEqual(3); // a flood may overflow the kernel's own backlog
    expect(sent).toBeGreaterThan(300);
    const changes = await engine.changes(before);
    expect(changes['dropSendError']).toBeUndefined();
    expect(changes['egressPackets']).toBeGreaterThan(300);
    const { peers } = await engine.stats();
    expect(peers.find(({ address }) => address === c.underlay)?.txPackets).toBeGreaterThan(0);
  });

  it('is not fooled by a forged “fragmentation needed”', async () => {
    expect(await large(2)).toBe(2);
    // An engine of its own lets host c write any packet: what arrives on its loopback goes into its TUN, and from there
    // its kernel forwards it. It claims that a router could not pass on what host a sent to host b.
    await using forger = await lab.remote(c.ns);
    const { device } = await forger.open({
      device: 'forge0',
      bind: { address: '127.0.0.1' },
      local: [`${a.underlay}/32`],
      sourceCheck: 'off',
      workers: 1,
    });
    await c.ns.ip('link', 'set', device.name, 'up');
    const quoted = udpPacket({
      src: a.underlay,
      dst: b.underlay,
      sport: 8285,
      dport: 8285,
      payload: Array(1472).fill(0),
    });
    const needed = icmp(3, 4, 600, quoted.subarray(0, 28));
    const forged = ipv4({ src: '192.168.77.254', dst: a.underlay, protocol: 1, payload: needed });
    await forger.udpSend({ address: '127.0.0.1', port: 8285, datagrams: [toHex(forged)] });
    // The host's own routing fell for it …
    await until(async () => (await a.ns.ip('route', 'get', b.underlay)).includes('mtu 600'), { what: 'the forgery' });
    // … and the data plane did not.
    const before = await engine.quiet();
    expect(await large(5)).toBe(5);
    await bulk();
    const changes = await engine.changes(before);
    expect(Object.keys(changes).filter((name) => /^(drop|fallback|fragments)/.test(name))).toEqual([]);
    expect((await engine.stats()).peers).toContainEqual(
      expect.objectContaining({ address: b.underlay, pathMtu: 1500 }),
    );
    await a.ns.ip('route', 'flush', 'cache');
  });

  it('shows what overflowed while the workers did not run', async () => {
    const before = await engine.quiet();
    const queued = 6000;
    engine.process.child.kill('SIGSTOP');
    await podA.udpSend({ address: b.podAddress, port: 9, datagrams: Array<string>(queued).fill('00') });
    engine.process.child.kill('SIGCONT');
    const changes = await until(
      async () => {
        const seen = await engine.changes(before);
        return (seen['egressPackets'] ?? 0) + (seen['dropTunQueue'] ?? 0) >= queued && seen;
      },
      { what: 'the queue to be worked off' },
    );
    expect(changes['dropTunQueue']).toBeGreaterThan(1000);
    // The kernel's own multicast may be among what the queue refused.
    const both = changes['egressPackets']! + changes['dropTunQueue']!;
    expect(both).toBeGreaterThanOrEqual(queued);
    expect(both).toBeLessThanOrEqual(queued + 5);
  });

  it('shows what a receive queue refused', async () => {
    await using world = await lab.remote(c.ns);
    const packet = toHex(udpPacket({ src: c.podAddress, dst: a.podAddress, dport: 9, payload: [] }));
    const before = await engine.quiet();
    await podA.udpListen(a.podAddress, 9);
    engine.process.child.kill('SIGSTOP');
    let sent = 0;
    // Until the kernel has dropped some: how many fit depends on what it charges for each.
    const overflowed = async (): Promise<boolean> =>
      (await a.ns.ok('cat', ['/proc/net/udp'])).split('\n').some((line) => {
        const fields = line.trim().split(/\s+/);
        return fields[1]?.endsWith(':205D') === true && Number(fields.at(-1)) > 0;
      });
    while (!(await overflowed())) {
      expect(sent).toBeLessThan(200_000);
      await world.udpSend({ address: a.underlay, port: 8285, datagrams: Array<string>(5000).fill(packet) });
      sent += 5000;
    }
    engine.process.child.kill('SIGCONT');
    const changes = await until(
      async () => {
        const seen = await engine.changes(before);
        return (seen['ingressPackets'] ?? 0) + (seen['dropSocketOverflow'] ?? 0) >= sent && seen;
      },
      { what: 'the queue to be worked off' },
    );
    expect(changes['dropSocketOverflow']).toBeGreaterThan(0);
    expect(changes['ingressPackets']! + changes['dropSocketOverflow']!).toBe(sent);
    expect((await ping(a.pod, '-c', '1', '-W', '5', b.podAddress)).code).toBe(0);
  });
});
