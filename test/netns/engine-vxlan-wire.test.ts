/**
 * vxlan on the wire, held against the kernel's device: host 1 runs a data plane, host 2 the kernel's device set up as
 * flannel does, and host 3 is plain sockets that see and make the datagrams of both.
 */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { Host } from '../support/engine-lab.js';
import { EngineLab, ping } from '../support/engine-lab.js';
import { toHex, udpPacket } from '../support/packets.js';
import { until } from '../support/process.js';
import type { Remote } from '../support/remote.js';
import { missing } from '../support/requires.js';
import type { Seen, UdpListener } from '../support/vxlan-lab.js';
import { DEVICE, UdpTool, kernelVxlan, openVxlan, outer, vtepMac } from '../support/vxlan-lab.js';

const PORT = 8472;
const MARKS = [0, 1, 2, 3] as const;
const needs = {
  root: true,
  tun: true,
  commands: ['ip', 'bridge', 'ping', 'iptables', 'cc'],
  files: ['dist/dataplane/dataplane.js'],
};

const bare = (mac: string): string => mac.replaceAll(':', '');

describe.skipIf(missing(needs))('vxlan on the wire', () => {
  let lab: EngineLab;
  let tool: UdpTool;
  let hosts: readonly [Host, Host, Host];
  let engine: Remote;

  beforeAll(async () => {
    lab = await EngineLab.create(3, 1450);
    tool = await UdpTool.build();
    hosts = lab.hosts as unknown as [Host, Host, Host];
    engine = await lab.remote(hosts[0].ns);
    await openVxlan(lab, engine, hosts[0]);
    await kernelVxlan(lab, hosts[1]);
  });
  afterAll(async () => {
    await tool[Symbol.asyncDispose]();
    await lab[Symbol.asyncDispose]();
  });

  /** The header of a frame from host 3 to another. */
  function header(to: Host, { vni = 1, source = vtepMac(hosts[2]), type = '0800' } = {}): string {
    return `08000000${vni.toString(16).padStart(6, '0')}00${bare(vtepMac(to))}${bare(source)}${type}`;
  }

  const toPod = (to: Host, payload: readonly number[], tos = 0): string =>
    toHex(udpPacket({ src: hosts[2].podAddress, dst: to.podAddress, dport: 9000, payload, ip: { tos } }));

  const throw_ = async (to: Host, frames: readonly string[], how: Parameters<UdpTool['send']>[3] = {}): Promise<void> =>
    await tool.send(hosts[2].ns, { address: outer(to), port: PORT }, frames, how);

  describe('from pods', () => {
    let listener: UdpListener;
    beforeAll(async () => void (listener = await tool.listen(hosts[2].ns, outer(hosts[2]), PORT)));
    afterAll(async () => await listener[Symbol.asyncDispose]());

    /** What the wire sees of datagrams from one host's pod to a pod of host 3, one for each type of service. */
    async function sent(from: Host, address: string, tos: readonly number[]): Promise<Seen[]> {
      const seen: Seen[] = [];
      for (const one of tos) {
        await tool.send(from.pod, { address, port: 7 }, ['706f6477697265'], { tos: one });
        seen.push(...(await listener.take(1)));
      }
      return seen;
    }

    it.each(['podAddress', 'podAddress6'] as const)('looks as from the kernel, to %s', async (which) => {
      const tos = [...MARKS, ...MARKS.map((mark) => 0xb8 | mark)];
      const [ours, kernels] = [await sent(hosts[0], hosts[2][which], tos), await sent(hosts[1], hosts[2][which], tos)];
      const outside = ({ tos: outerTos, ttl }: Seen): object => ({ outerTos, ttl });
      expect(ours.map(outside)).toEqual(kernels.map(outside));
      // No DSCP, and CE leaves as ECT(0): what flannel's device does, so that a change of the kernel's shows here.
      expect(kernels.map(({ tos: outerTos }) => outerTos)).toEqual([0, 1, 2, 2, 0, 1, 2, 2]);
      for (const [i, { hex }] of ours.entries()) {
        const type = which === 'podAddress' ? '0800' : '86dd';
        const front = (host: Host): string => header(hosts[2], { source: vtepMac(host), type });
        expect(hex.slice(0, 44)).toBe(front(hosts[0]));
        expect(kernels[i]!.hex.slice(0, 44)).toBe(front(hosts[1]));
        // The inner packet keeps type of service and length, and the one hop less is the host's own.
        const at = which === 'podAddress' ? [44, 52] : [44, 47];
        expect(hex.slice(...at)).toBe(kernels[i]!.hex.slice(...at));
        const hops = which === 'podAddress' ? 44 + 16 : 44 + 14;
        expect([hex, kernels[i]!.hex].map((text) => text.slice(hops, hops + 2))).toEqual(['3f', '3f']);
      }
    });

    it('spreads flows over source ports, and a flow keeps its own', async () => {
      const send = (port: number): Promise<void> =>
        tool.send(hosts[0].pod, { address: hosts[2].podAddress, port }, ['00', '01', '02']);
      const outerPorts = new Map<string, Set<number>>();
      for (let i = 0; i < 40; i++) await send(100 + i);
      for (const { hex, port } of await listener.take(120)) {
        const flow = hex.slice(84, 92);
        outerPorts.set(flow, (outerPorts.get(flow) ?? new Set()).add(port));
      }
      expect(outerPorts.size).toBe(40);
      expect([...outerPorts.values()].every((ports) => ports.size === 1)).toBe(true);
      expect(new Set([...outerPorts.values()].flatMap((ports) => [...ports])).size).toBeGreaterThanOrEqual(8);
    });
  });

  describe('to pods', () => {
    let listeners: readonly [UdpListener, UdpListener];
    beforeAll(async () => {
      const [a, b] = hosts;
      listeners = [await tool.listen(a.pod, a.podAddress, 9000), await tool.listen(b.pod, b.podAddress, 9000)];
    });
    afterAll(async () => {
      for (const listener of listeners) await listener[Symbol.asyncDispose]();
    });

    it('takes congestion marks over as the kernel does', async () => {
      const results: (readonly string[])[] = [];
      const before = await engine.stats();
      for (const [i, to] of [hosts[0], hosts[1]].entries()) {
        for (const mark of MARKS) {
          const inner = MARKS.map((own) => header(to) + toPod(to, [mark, own], 0xb8 | own));
          await throw_(to, inner, { tos: mark });
        }
        await throw_(to, [header(to) + toPod(to, [99], 0)]);
        const seen: Seen[] = [];
        await until(async () => seen.push(...(await listeners[i]!.take(1))) > 0 && seen.at(-1)!.hex === '63', {
          what: 'the last datagram',
        });
        results.push(seen.map(({ tos, ttl, hex }) => `${hex}: ${tos.toString(16)}, ${String(ttl)}`));
      }
      expect(results[0]).toEqual(results[1]);
      expect(results[0]!.length).toBe(4 * 4); // one of sixteen is dropped: CE on what does not know marks
      expect(await engine.reached(before, { dropEcnMark: 1, ingressPackets: 16 })).toEqual({
        dropEcnMark: 1,
        ingressPackets: 16,
      });
    });

    it('takes datagrams without an outer checksum, padded ones, and those of any source port', async () => {
      const [to] = hosts;
      await throw_(to, [header(to) + toPod(to, [1])], { withoutChecksum: true });
      await throw_(to, [`${header(to)}${toPod(to, [2])}0000`]);
      expect((await listeners[0].take(2)).map(({ hex }) => hex)).toEqual(['01', '02']);
    });

    it('refuses what is not for it, and counts it by its reason', async () => {
      const [to, other] = hosts;
      const good = toPod(to, [7]);
      const before = await engine.stats();
      const all = 'ff'.repeat(6);
      const arp = `0001080006040001${bare(vtepMac(hosts[2]))}0af40300${'00'.repeat(6)}0af40100`;
      const frames = [
        `00${header(to).slice(2)}${good}`, // no I flag
        `88000123${header(to).slice(8)}${good}`, // a group policy
        header(to, { vni: 2 }) + good,
        header(to, { source: vtepMac(to) }) + good, // a loop
        header(other) + good, // another VTEP
        header(to, { type: '0806' }) + arp,
        (header(to, { type: '0806' }) + arp).replace(bare(vtepMac(to)), all),
        header(to).replace(bare(vtepMac(to)), all) + good,
        header(to, { type: '86dd' }).replace(bare(vtepMac(to)), '333300000001') + '60'.padEnd(80, '0'),
        header(to).slice(0, 30),
        header(to),
        header(to) + good.slice(0, 48), // cut off
        header(to) + toPod(other, [7]), // to a pod of somebody else
        header(to) + toHex(udpPacket({ src: to.podAddress, dst: to.podAddress, payload: [7] })),
        header(to) + toHex(udpPacket({ src: other.podAddress, dst: to.podAddress, payload: [7] })),
      ];
      await throw_(to, frames);
      const wanted = {
        dropVxlanFlags: 2,
        dropVxlanVni: 1,
        dropVxlanLoop: 1,
        dropVxlanMac: 1,
        dropVxlanType: 2,
        dropVxlanGroup: 2,
        dropShort: 2,
        dropTruncated: 1,
        dropNotLocal: 1,
        dropSpoofedSource: 2,
      };
      expect(await engine.reached(before, wanted)).toEqual(wanted);
      // Tolerated without a line: what any Ethernet says; told: the rest.
      await until(() => engine.events.some(({ text }) => text?.includes('another MAC than this VTEP') === true), {
        what: 'the line about frames for another VTEP',
      });
      const told = engine.events.map(({ text }) => text).join();
      expect(told).not.toContain('neighbour discovery');
      expect(told).not.toContain('spanning tree');
    });
  });

  it('tells pods what the path takes, less the overhead of vxlan', async () => {
    const [a, , c] = hosts;
    await engine.routes([[c.subnet, { address: c.underlay, vtepMac: vtepMac(c), mtu: 1400 }]]);
    const told = await ping(a.pod, '-c', '1', '-W', '2', '-M', 'do', '-s', '1400', c.podAddress);
    expect(told.stdout + told.stderr).toMatch(/mtu ?= ?1350/);
    await using listener = await tool.listen(c.ns, c.underlay, PORT);
    await ping(a.pod, '-c', '1', '-W', '0.2', '-M', 'dont', '-s', '1400', c.podAddress);
    const cut = await listener.take(2);
    expect(cut.map(({ hex }) => hex.length / 2 + 28).every((bytes) => bytes <= 1400)).toBe(true);
    await a.pod.ip('route', 'flush', 'cache');
    await engine.routes([[hosts[1].subnet, { address: hosts[1].underlay, vtepMac: vtepMac(hosts[1]) }]]);
  });

  it('carries what hosts translate, both ways', async () => {
    const [a, b] = hosts;
    const [podA, podB] = [await lab.remote(a.pod), await lab.remote(b.pod)];
    await engine.routes([[b.subnet, { address: b.underlay, vtepMac: vtepMac(b) }]]);
    for (const [from, remote, to, far] of [
      [a, podA, b, podB],
      [b, podB, a, podA],
    ] as const) {
      const port = await far.tcpListen(to.podAddress);
      const echo = await far.udpListen(to.podAddress, 0, true);
      const nat = (...args: string[]): Promise<string> => from.ns.ok('iptables', ['-t', 'nat', ...args]);
      // A service address on one side of the tunnel, and the host's own address as the source.
      await nat('-A', 'PREROUTING', '-d', '10.96.0.10', '-j', 'DNAT', '--to-destination', to.podAddress);
      await nat('-A', 'POSTROUTING', '-o', DEVICE, '-j', 'MASQUERADE');
      const { sent, arrived } = await remote.tcpSend('10.96.0.10', port, 3 << 20);
      expect(arrived).toEqual(sent);
      const exchange = { address: '10.96.0.10', port: echo, count: 10, size: 1400, patienceMs: 5000 };
      expect(await remote.udpExchange(exchange)).toEqual({ answered: 10, lost: 0, wrong: 0 });
      const sources = new Set((await far.udpReceived(echo)).map((datagram) => datagram.from));
      expect(sources).toEqual(new Set([`10.244.${String(from.number)}.0`]));
      await nat('-F');
    }
    const { totals } = await engine.quiet();
    expect([totals.dropMalformed, totals.dropTunError, totals.fallbackTunGso, totals.fallbackUdpSegment]).toEqual([
      0, 0, 0, 0,
    ]);
  });

  it('says who has the port when the kernel’s device has it', async () => {
    const [, b] = hosts;
    const second = await lab.remote(b.ns);
    await expect(openVxlan(lab, second, b, { device: 'flannel9' })).rejects.toMatchObject({
      code: 'PORT_IN_USE',
      message: expect.stringMatching(
        /UDP port 8472 on .*: a kernel vxlan device \('ip -d link show type vxlan'\)/,
      ) as string,
    });
  });
});
