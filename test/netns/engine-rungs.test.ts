/**
 * Two hosts and their pods over the real kernel, once for every offload rung: whatever is switched off, the same
 * packets pass. A rung that the kernel does not grant shows in the capabilities, and what was asked for is then less.
 */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { TunRung, UdpRung } from '../../src/io/ports.js';
import { EngineLab, answers, ping, plug } from '../support/engine-lab.js';
import type { Remote } from '../support/remote.js';
import { until } from '../support/process.js';
import { missing } from '../support/requires.js';

const tunRungs: readonly TunRung[] = ['uso', 'tso', 'csum', 'none'];
const udpRungs: readonly UdpRung[] = ['gso', 'mmsg', 'single'];
const combinations = tunRungs.flatMap((tun) => udpRungs.map((udp) => ({ tun, udp })));
const MIB = 1 << 20;

describe.skipIf(missing({ root: true, tun: true, commands: ['ip', 'ping'], files: ['dist/dataplane/dataplane.js'] }))(
  'offload rungs',
  () => {
    let lab: EngineLab;
    let pods: readonly [Remote, Remote];
    const tcp: number[] = [];
    const udp: number[] = [];
    const tcp6: number[] = [];

    beforeAll(async () => {
      lab = await EngineLab.create(2);
      const [a, b] = lab.hosts as [(typeof lab.hosts)[0], (typeof lab.hosts)[0]];
      pods = [await lab.remote(a.pod), await lab.remote(b.pod)];
      for (const [i, host] of lab.hosts.entries()) {
        tcp.push(await pods[i]!.tcpListen(host.podAddress));
        tcp6.push(await pods[i]!.tcpListen(host.podAddress6));
        udp.push(await pods[i]!.udpListen(host.podAddress, 0, true));
      }
    });
    afterAll(async () => await lab[Symbol.asyncDispose]());

    it.each(combinations)('tun $tun, udp $udp', async (offload) => {
      const [a, b] = lab.hosts as [(typeof lab.hosts)[0], (typeof lab.hosts)[0]];
      await using first = await lab.remote(a.ns);
      await using second = await lab.remote(b.ns);
      const { capabilities, mtu } = await lab.open(first, a, { offload, workers: 1 });
      await lab.open(second, b, { offload, workers: 1 });
      expect(tunRungs.indexOf(capabilities.tun)).toBeGreaterThanOrEqual(tunRungs.indexOf(offload.tun));
      expect(capabilities.udp === offload.udp || offload.udp === 'gso').toBe(true);
      expect(mtu.overlay).toBe(1472);

      expect(await answers(a.pod, '-c', '3', '-i', '0.05', '-W', '5', b.podAddress)).toBe(3);
      expect(await answers(b.pod, '-c', '3', '-i', '0.05', '-W', '5', a.podAddress6)).toBe(3);
      // At the MTU with DF, beyond it in fragments, and the other way about.
      expect(await answers(a.pod, '-c', '2', '-i', '0.05', '-M', 'do', '-s', '1444', '-W', '5', b.podAddress)).toBe(2);
      expect(await answers(b.pod, '-c', '2', '-i', '0.05', '-M', 'dont', '-s', '20000', a.podAddress)).toBe(2);
      expect(await answers(a.pod, '-c', '2', '-i', '0.05', '-s', '20000', b.podAddress6)).toBe(2);
      // From the host itself: flannel's own address is the source. TTLs: only the two kernels count hops.
      expect((await ping(a.ns, '-c', '1', '-W', '5', b.podAddress)).code).toBe(0);
      const echo = await ping(a.pod, '-c', '1', '-W', '5', '-t', '3', b.podAddress);
      expect(echo.stdout).toContain(' ttl=62 ');
      expect((await ping(a.pod, '-c', '1', '-W', '5', '-t', '2', b.podAddress)).stdout).toContain('exceeded');
      expect((await ping(b.pod, '-c', '1', '-W', '5', '-t', '3', a.podAddress6)).stdout).toContain(' ttl=62 ');

      for (const [from, to, port] of [
        [pods[0], b.podAddress, tcp[1]!],
        [pods[1], a.podAddress, tcp[0]!],
        [pods[0], b.podAddress6, tcp6[1]!],
      ] as const) {
        const bulk = await from.tcpSend(to, port, 6 * MIB + 12_345, combinations.indexOf(offload));
        expect(bulk.arrived).toEqual(bulk.sent);
        expect(bulk.sent.bytes).toBe(6 * MIB + 12_345);
      }
      for (const size of [4, 1444, 9000]) {
        const exchange = { address: b.podAddress, port: udp[1]!, count: 20, size, patienceMs: 5000 };
        expect(await pods[0].udpExchange(exchange)).toEqual({ answered: 20, lost: 0, wrong: 0 });
      }
      const requests = await pods[1].udpReceived(udp[1]!);
      expect(requests).toHaveLength(60);
      expect(new Set(requests.map(({ from }) => from))).toEqual(new Set([a.podAddress]));

      // Everything that one side sent the other received, and nothing was dropped but the kernel's own chatter.
      const [one, two] = await until(
        async () => {
          const both = [await first.stats(), await second.stats()] as const;
          const even = [0, 1].every((i) => both[i]!.totals.egressPackets === both[1 - i]!.totals.ingressPackets);
          return even && both;
        },
        { what: 'the counters of both sides to agree' },
      );
      for (const { totals } of [one, two]) {
        const drops = Object.entries(totals).filter(([name, value]) => name.startsWith('drop') && value !== 0);
        expect(drops.filter(([name]) => name !== 'dropMulticast')).toEqual([]);
        expect(totals.fallbackUdpSegment + totals.fallbackTunGso).toBe(0);
        expect(totals.egressPackets).toBeGreaterThan(4000);
      }
      // The rung does what its name says.
      const joined = one.totals.egressPackets / one.totals.egressSuperpackets;
      if (['uso', 'tso'].includes(capabilities.tun)) expect(joined).toBeGreaterThan(2);
      else expect(joined).toBe(1);
      const each = one.totals.egressPackets / one.totals.sendEntries;
      const calls = one.totals.sendEntries / one.totals.sendCalls;
      if (capabilities.udp === 'gso') expect(each).toBeGreaterThan(1.2);
      else expect(each).toBe(1);
      if (capabilities.udp === 'single') expect(calls).toBe(1);
      else expect(calls).toBeGreaterThanOrEqual(1);
      expect(await first.close()).toBeLessThan(1000);
      expect(await second.close()).toBeLessThan(1000);
    });

    it.each(['auto', 'single'] as const)('over an IPv6 underlay, udp %s', async (udp) => {
      const [a, b] = lab.hosts as [(typeof lab.hosts)[0], (typeof lab.hosts)[0]];
      await using first = await lab.remote(a.ns);
      await using second = await lab.remote(b.ns);
      for (const [engine, host, other] of [
        [first, a, b],
        [second, b, a],
      ] as const) {
        const bind = { address: `fd76::${String(host.number)}` };
        const opened = await engine.open(lab.options(host, { bind, offload: { udp }, workers: 1 }));
        expect(opened.mtu).toMatchObject({ overlay: 1452, overhead: 48 });
        const hop = `fd76::${String(other.number)}`;
        await engine.routes([
          [other.subnet, hop],
          [other.subnet6, hop],
        ]);
        await plug(host.ns, opened, `10.244.${String(host.number)}.0/32`);
      }
      expect(await answers(a.pod, '-c', '2', '-i', '0.05', '-M', 'do', '-s', '1424', '-W', '5', b.podAddress)).toBe(2);
      // The pods' links take more than this overlay: the hosts' kernels tell the pods, which then know.
      for (const [from, to] of [
        [a, b],
        [b, a],
      ] as const) {
        const told = await ping(from.pod, '-c', '1', '-s', '9000', '-W', '1', to.podAddress6);
        expect(told.stdout).toContain('Packet too big: mtu=1452');
      }
      expect(await answers(b.pod, '-c', '2', '-i', '0.05', '-s', '9000', '-W', '5', a.podAddress6)).toBe(2);
      for (const { pod } of [a, b]) await pod.ip('-6', 'route', 'flush', 'cache');
      const bulk = await pods[0].tcpSend(b.podAddress, tcp[1]!, 4 * MIB);
      expect(bulk.arrived).toEqual(bulk.sent);
      for (const engine of [first, second]) {
        const { totals, peers } = await engine.stats();
        const drops = Object.entries(totals).filter(([name, value]) => name.startsWith('drop') && value !== 0);
        expect(drops.filter(([name]) => name !== 'dropMulticast')).toEqual([]);
        expect(peers).toHaveLength(1);
        expect(peers[0]!.rxPackets).toBeGreaterThan(20);
      }
    });

    it('takes different rungs on both sides', async () => {
      const [a, b] = lab.hosts as [(typeof lab.hosts)[0], (typeof lab.hosts)[0]];
      await using first = await lab.remote(a.ns);
      await using second = await lab.remote(b.ns);
      await lab.open(first, a, { offload: { tun: 'none', udp: 'single' }, workers: 1 });
      await lab.open(second, b, { workers: 2, spin: 'always' });
      for (const [from, to, port] of [
        [pods[0], b.podAddress, tcp[1]!],
        [pods[1], a.podAddress6, tcp6[0]!],
      ] as const) {
        const bulk = await from.tcpSend(to, port, 4 * MIB);
        expect(bulk.arrived).toEqual(bulk.sent);
      }
    });
  },
);
