/**
 * What a pod is told about packets that cannot go on: the ICMP error really arrives in it, whatever reverse path filter
 * the host has, and RFC 1122, 1812 and 4443 say when it must not be sent at all.
 */
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import type { DataplaneOptions } from '../../src/dataplane/dataplane.js';
import type { Host } from '../support/engine-lab.js';
import { EngineLab, answers, ping, rpFilter } from '../support/engine-lab.js';
import { toHex, udpPacket } from '../support/packets.js';
import { until } from '../support/process.js';
import type { Remote } from '../support/remote.js';
import { missing } from '../support/requires.js';

const NOWHERE = '10.244.99.9';
const NOWHERE6 = 'fd77:99::9';
const withoutRawSockets = ['setpriv', '--bounding-set', '-net_raw', '--inh-caps', '-net_raw'];
const MIB = 1 << 20;

const needs = { root: true, tun: true, commands: ['ip', 'ping', 'setpriv'], files: ['dist/dataplane/dataplane.js'] };

describe.skipIf(missing(needs))('ICMP to a pod', () => {
  let lab: EngineLab;
  let host: Host;
  let other: Host;
  let pod: Remote;
  let otherPod: Remote;
  let tcpPort: number;

  beforeAll(async () => {
    lab = await EngineLab.create(2);
    [host, other] = lab.hosts as [Host, Host];
    pod = await lab.remote(host.pod);
    otherPod = await lab.remote(other.pod);
    tcpPort = await otherPod.tcpListen(other.podAddress);
  });
  afterAll(async () => await lab[Symbol.asyncDispose]());

  beforeEach(async () => {
    // What the pods learnt of path MTUs is of no use to the next test.
    for (const family of ['-4', '-6']) await host.pod.ip(family, 'route', 'flush', 'cache');
  });

  async function open(through: readonly string[] = [], more: Partial<DataplaneOptions> = {}): Promise<Remote> {
    const engine = await lab.remote(host.ns, [], through);
    const { capabilities } = await lab.open(engine, host, { workers: 1, ...more });
    expect(capabilities.rawIcmp).toBe(through.length === 0);
    return engine;
  }

  /** What changed, once as many packets were decided as were sent and every refusal is answered or known not to be. */
  async function settled(engine: Remote, before: Awaited<ReturnType<Remote['stats']>>, decided: number) {
    return await until(
      async () => {
        const seen = await engine.changes(before);
        const { dropNoRoute = 0, dropTooBig = 0, dropOwnSubnet = 0, egressPackets = 0 } = seen;
        const replies = (seen['repliesSent'] ?? 0) + (seen['repliesLimited'] ?? 0) + (seen['repliesSuppressed'] ?? 0);
        const answered = replies === dropNoRoute + dropTooBig;
        return answered && dropNoRoute + dropTooBig + dropOwnSubnet + egressPackets >= decided && seen;
      },
      { what: `${String(decided)} packets to be decided` },
    );
  }

  describe.each([
    { how: 'the host’s raw socket', through: [], source: '10.244.1.1', source6: 'fd77:1::1' },
    { how: 'the TUN', through: withoutRawSockets, source: NOWHERE, source6: NOWHERE6 },
  ])('through $how', ({ through, source, source6 }) => {
    it.each([0, 1, 2] as const)('“no route” arrives with rp_filter %i', async (filter) => {
      await using engine = await open(through);
      await rpFilter(host.ns, filter);
      const before = await engine.stats();
      const four = await ping(host.pod, '-c', '1', '-W', '5', NOWHERE);
      expect(four.stdout).toContain(`From ${source} icmp_seq=1 Destination Net Unreachable`);
      const six = await ping(host.pod, '-c', '1', '-W', '5', NOWHERE6);
      expect(six.stdout).toContain(`From ${source6} icmp_seq=1 Destination unreachable: No route`);
      expect(await settled(engine, before, 2)).toEqual({ dropNoRoute: 2, repliesSent: 2 });
    });

    it.each([0, 1, 2] as const)('“too big” arrives with rp_filter %i', async (filter) => {
      await using engine = await open(through);
      await rpFilter(host.ns, filter);
      await engine.routes([
        [other.subnet, { address: other.underlay, mtu: 1400 }],
        [other.subnet6, { address: other.underlay, mtu: 1400 }],
      ]);
      const before = await engine.stats();
      const four = await ping(host.pod, '-c', '1', '-W', '5', '-M', 'do', '-s', '1345', other.podAddress);
      expect(four.stdout + four.stderr).toMatch(/Frag(mentation)? needed and DF set \(mtu = 1372\)/);
      const six = await ping(host.pod, '-c', '1', '-W', '5', '-M', 'do', '-s', '1325', other.podAddress6);
      expect(six.stdout + six.stderr).toMatch(/Packet too big: mtu=1372/);
      expect(await settled(engine, before, 2)).toEqual({ dropTooBig: 2, repliesSent: 2 });
      expect(await host.pod.ip('route', 'get', other.podAddress)).toContain('mtu 1372');
    });
  });

  it('is not sent about fragments but the first, nor about ICMP errors', async () => {
    await using engine = await open();
    await rpFilter(host.ns, 0);
    let before = await engine.stats();
    // 4028 bytes through a pod MTU of 1472: three fragments.
    await ping(host.pod, '-c', '1', '-W', '1', '-M', 'dont', '-s', '4000', NOWHERE);
    expect(await settled(engine, before, 3)).toEqual({ dropNoRoute: 3, repliesSent: 1, repliesSuppressed: 2 });

    before = await engine.stats();
    await pod.udpSend({ address: NOWHERE, port: 9, datagrams: ['5a'.repeat(4000)] });
    expect(await settled(engine, before, 3)).toEqual({ dropNoRoute: 3, repliesSent: 1, repliesSuppressed: 2 });

    // The pod answers a datagram to a closed port with port unreachable, to an address that nobody leased.
    before = await engine.stats();
    const closed = udpPacket({ src: NOWHERE, dst: host.podAddress, dport: 1, payload: [1] });
    await using world = await lab.remote(other.ns);
    await world.udpSend({ address: host.underlay, port: 8285, local: other.underlay, datagrams: [toHex(closed)] });
    expect(await settled(engine, before, 1)).toEqual({ ingressPackets: 1, dropNoRoute: 1, repliesSuppressed: 1 });
  });

  it('is limited, and what is not sent is counted', async () => {
    await using engine = await open();
    await pod.call('udpListen', { address: '0.0.0.0', port: 5000 });
    const before = await engine.stats();
    const from = performance.now();
    const count = 400;
    const datagrams = Array<string>(count).fill('00');
    await pod.udpSend({ address: NOWHERE, port: 9, datagrams, from: 5000 });
    const changes = await settled(engine, before, count);
    const seconds = (performance.now() - from) / 1000;
    const { repliesSent = 0, repliesLimited = 0, ...rest } = changes;
    expect(rest).toEqual({ dropNoRoute: count });
    expect(repliesSent + repliesLimited).toBe(count);
    expect(repliesSent).toBeGreaterThanOrEqual(32);
    expect(repliesSent).toBeLessThanOrEqual(50 + 200 * seconds + 1);
    await pod.call('udpClose', { port: 5000 });
  });

  it('own addresses do not loop: what belongs to this host and still reaches the TUN is dropped', async () => {
    await using engine = await open();
    await host.ns.ip('route', 'add', '10.244.1.77/32', 'dev', 'flannel0');
    const before = await engine.stats();
    await ping(host.ns, '-c', '2', '-i', '0.05', '-W', '1', '10.244.1.77');
    expect(await settled(engine, before, 2)).toEqual({ dropOwnSubnet: 2 });
  });

  describe('a path MTU below the pods’', () => {
    async function both(): Promise<readonly [Remote, Remote]> {
      await rpFilter(host.ns, 0);
      const first = await open();
      const second = await lab.remote(other.ns);
      await lab.open(second, other, { workers: 1 });
      await first.routes([[other.subnet, { address: other.underlay, mtu: 1400 }]]);
      return [first, second];
    }

    it('cuts packets without DF into fragments that arrive whole', async () => {
      const [first, second] = await both();
      await using _ = first;
      await using __ = second;
      const before = await first.stats();
      for (const size of [1344, 1345, 1444]) {
        expect(
          await answers(
            host.pod,
            '-c',
            '2',
            '-i',
            '0.05',
            '-W',
            '5',
            '-M',
            'dont',
            '-s',
            String(size),
            other.podAddress,
          ),
        ).toBe(2);
      }
      expect(await first.changes(before)).toMatchObject({ fragmentsSent: 8, egressPackets: 10 });
      // Fragments of the pod's own that are too big are cut again.
      expect(
        await answers(host.pod, '-c', '2', '-i', '0.05', '-W', '5', '-M', 'dont', '-s', '9000', other.podAddress),
      ).toBe(2);
    });

    it('cuts TCP superpackets without DF, too', async () => {
      const [first, second] = await both();
      await using _ = first;
      await using __ = second;
      await host.pod.sysctl({ 'net.ipv4.ip_no_pmtu_disc': 1 });
      try {
        const bulk = await pod.tcpSend(other.podAddress, tcpPort, 2 * MIB);
        expect(bulk.arrived).toEqual(bulk.sent);
        const { totals } = await first.stats();
        expect(totals.dropTooBig).toBe(0);
        expect(totals.fragmentsSent).toBeGreaterThan(1000);
      } finally {
        await host.pod.sysctl({ 'net.ipv4.ip_no_pmtu_disc': 0 });
      }
    });

    it('lets TCP with DF find the size that passes', async () => {
      const [first, second] = await both();
      await using _ = first;
      await using __ = second;
      const bulk = await pod.tcpSend(other.podAddress, tcpPort, 4 * MIB);
      expect(bulk.arrived).toEqual(bulk.sent);
      const { totals } = await first.stats();
      expect(totals.dropTooBig).toBeGreaterThan(0);
      expect(totals.repliesSent).toBeGreaterThan(0);
      expect(totals.fragmentsSent).toBe(0);
      expect(await host.pod.ip('route', 'get', other.podAddress)).toContain('mtu 1372');
    });
  });
});
