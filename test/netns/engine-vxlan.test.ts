/**
 * User-space vxlan against the kernel's vxlan device, set up as flannel does, and against itself: pods must not be able
 * to tell which is which. Over veth pairs, so that the kernel's superpackets and checksums arrive unfinished.
 */
import { afterEach, afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { Host } from '../support/engine-lab.js';
import { EngineLab, answers, ping } from '../support/engine-lab.js';
import { toHex, ramp } from '../support/packets.js';
import type { Remote } from '../support/remote.js';
import { missing } from '../support/requires.js';
import { DEVICE, UdpTool, kernelVxlan, openVxlan } from '../support/vxlan-lab.js';

const MIB = 1 << 20;
const needs = {
  root: true,
  tun: true,
  commands: ['ip', 'bridge', 'ping', 'cc'],
  files: ['dist/dataplane/dataplane.js'],
};

/** Offloads of the data plane; on an IPv6 underlay the best and the worst. */
const RUNGS = [{}, { tun: 'csum', udp: 'mmsg' }, { tun: 'none', udp: 'single' }] as const;
const CASES = [
  { family: 4, mtu: 1450, rungs: RUNGS },
  { family: 6, mtu: 1430, rungs: [RUNGS[0], RUNGS[2]] },
] as const;

const lacking = missing(needs);
describe.skipIf(lacking).each(CASES)('vxlan in user space over IPv$family', ({ family, mtu, rungs }) => {
  let lab: EngineLab;
  let tool: UdpTool;
  let a: Host;
  let b: Host;
  let pods: readonly [Remote, Remote];
  let engines: Remote[] = [];
  const ports: { tcp: number; tcp6: number; udp: number }[] = [];

  beforeAll(async () => {
    lab = await EngineLab.create(2, mtu);
    tool = await UdpTool.build();
    [a, b] = lab.hosts as [Host, Host];
    pods = [await lab.remote(a.pod), await lab.remote(b.pod)];
    for (const [i, host] of lab.hosts.entries()) {
      ports.push({
        tcp: await pods[i]!.tcpListen(host.podAddress),
        tcp6: await pods[i]!.tcpListen(host.podAddress6),
        udp: await pods[i]!.udpListen(host.podAddress, 0, true),
      });
    }
  });
  afterEach(async () => {
    for (const engine of engines) await engine[Symbol.asyncDispose]();
    engines = [];
    for (const { ns } of lab.hosts) await ns.run('ip', ['link', 'delete', DEVICE]);
  });
  afterAll(async () => {
    await tool[Symbol.asyncDispose]();
    await lab[Symbol.asyncDispose]();
  });

  async function engine(host: Host, more: Parameters<typeof openVxlan>[3] = {}): Promise<Remote> {
    const remote = await lab.remote(host.ns);
    engines.push(remote);
    await openVxlan(lab, remote, host, { family, ...more });
    return remote;
  }

  /** Drops and fallbacks besides what every new link says to groups. */
  async function faults(remote: Remote): Promise<[string, number][]> {
    const { totals } = await remote.quiet();
    return Object.entries(totals).filter(
      ([name, value]) => /^(drop|fallback)/.test(name) && value !== 0 && name !== 'dropMulticast',
    );
  }

  /** Everything that pods do, both ways. */
  async function everythingPasses(): Promise<void> {
    for (const [from, to] of [
      [a, b],
      [b, a],
    ] as const) {
      expect(await answers(from.pod, '-c', '2', '-i', '0.05', '-W', '5', to.podAddress)).toBe(2);
      expect(await answers(from.pod, '-c', '2', '-i', '0.05', '-W', '5', to.podAddress6)).toBe(2);
      // At the MTU with DF, and beyond it in fragments.
      const full = String(mtu - 28);
      expect(await answers(from.pod, '-c', '2', '-i', '0.05', '-M', 'do', '-s', full, '-W', '5', to.podAddress)).toBe(
        2,
      );
      expect(await answers(from.pod, '-c', '1', '-M', 'dont', '-s', '20000', '-W', '5', to.podAddress)).toBe(1);
      expect(await answers(from.pod, '-c', '1', '-s', '20000', '-W', '5', to.podAddress6)).toBe(1);
      expect((await ping(from.ns, '-c', '1', '-W', '5', to.podAddress)).code).toBe(0);
      // Only the two hosts' kernels count hops.
      expect((await ping(from.pod, '-c', '1', '-W', '5', '-t', '3', to.podAddress)).stdout).toContain(' ttl=62 ');
    }
    for (const [from, address, port] of [
      [pods[0], b.podAddress, ports[1]!.tcp],
      [pods[1], a.podAddress, ports[0]!.tcp],
      [pods[0], b.podAddress6, ports[1]!.tcp6],
      [pods[1], a.podAddress6, ports[0]!.tcp6],
    ] as const) {
      const { sent, arrived } = await from.tcpSend(address, port, 6 * MIB + 12_345);
      expect(arrived).toEqual(sent);
    }
    for (const size of [4, 1400, 9000]) {
      const exchange = { address: b.podAddress, port: ports[1]!.udp, count: 20, size, patienceMs: 5000 };
      expect(await pods[0].udpExchange(exchange)).toEqual({ answered: 20, lost: 0, wrong: 0 });
    }
    await pods[1].udpReceived(ports[1]!.udp);
    // UDP superpackets: the borders between datagrams stay where the sender put them.
    for (const [from, to] of [
      [a, b],
      [b, a],
    ] as const) {
      for (const [segment, bytes] of [
        [100, 250],
        [1400, 60_000],
        [16, 160],
      ] as const) {
        const port = 20_000 + segment;
        await using listener = await tool.listen(to.pod, to.podAddress, port);
        await tool.send(from.pod, { address: to.podAddress, port }, [toHex(ramp(bytes))], { segment });
        const count = Math.ceil(bytes / segment);
        const got = await listener.take(count);
        expect(got.map(({ hex }) => hex)).toEqual(
          Array.from({ length: count }, (_, i) => toHex(ramp(bytes).subarray(i * segment, (i + 1) * segment))),
        );
      }
    }
  }

  it.each(rungs)('talks to the kernel’s device (%o)', async (offload) => {
    const remote = await engine(a, { offload });
    await kernelVxlan(lab, b, { family });
    await everythingPasses();
    expect(await faults(remote)).toEqual([]);
    const { totals, peers } = await remote.stats();
    if (offload === RUNGS[0]) {
      // The kernel's superpackets were delivered as such, and ours were sent as such.
      expect(totals.ingressPackets / totals.ingressSuperpackets).toBeGreaterThan(3);
      expect(totals.egressPackets / totals.egressSuperpackets).toBeGreaterThan(3);
    }
    expect(peers.map(({ rxPackets }) => rxPackets > 1000)).toEqual([true]);
  });

  it('shares the kernel’s flows among several workers', async () => {
    const remote = await engine(a, { workers: 3 });
    await kernelVxlan(lab, b, { family });
    await everythingPasses();
    const listeners = await Promise.all(Array.from({ length: 12 }, () => pods[0].tcpListen(a.podAddress)));
    const streams = listeners.map((port, i) => pods[1].tcpSend(a.podAddress, port, MIB / 2, i + 1));
    for (const { sent, arrived } of await Promise.all(streams)) expect(arrived).toEqual(sent);
    expect(await faults(remote)).toEqual([]);
    const { workers } = await remote.stats();
    expect(workers.filter(({ counters }) => counters['ingressPackets']! > 0).length).toBeGreaterThan(1);
  });

  it.each([{}, { sourcePort: 'fixed', offload: { tun: 'tso', udp: 'mmsg' } }] as const)(
    'talks to itself (%o)',
    async (more) => {
      const [one, two] = [await engine(a, more), await engine(b, more)];
      await everythingPasses();
      expect(await faults(one)).toEqual([]);
      expect(await faults(two)).toEqual([]);
      const sent = (await one.stats()).totals.egressPackets;
      expect((await two.stats()).totals.ingressPackets).toBe(sent);
    },
  );
});
