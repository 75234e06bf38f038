/**
 * The bytes on the wire, seen by plain UDP sockets: flannel's golden packet, source ports, and UDP superpackets in both
 * directions. One namespace forwards from the tunnel of one data plane into that of another:
 *
 *   plain socket ─► 127.0.0.1:8285 [in, device in0] ─► kernel forwards ─► [device out0, out] ─► 192.168.77.2:8285 plain
 */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { DataplaneOptions } from '../../src/dataplane/dataplane.js';
import { STOP_THROW } from '../../src/dataplane/worker.js';
import { NetNs, veth } from '../support/netns.js';
import { hex, ipv4, ramp, tcpPacket, toHex, udpPacket } from '../support/packets.js';
import { until } from '../support/process.js';
import type { Datagram } from '../support/remote.js';
import { Remote } from '../support/remote.js';
import { missing } from '../support/requires.js';

/** flannel-contract 4.2: into the TUN, and out of the socket: the kernel between our two tunnels takes the one hop. */
const GOLDEN_IN = '45000020123440004011f5930a010f020a01100230390007000c000061626364';
const GOLDEN_OUT = '45000020123440003f11f6930a010f020a01100230390007000c000061626364';

describe.skipIf(missing({ root: true, tun: true, commands: ['ip'], files: ['dist/dataplane/dataplane.js'] }))(
  'on the wire',
  () => {
    let stack: AsyncDisposable[];
    let middle: NetNs;
    let inside: Remote;
    let outside: Remote;
    let far: Remote;

    const own = <T extends AsyncDisposable>(resource: T): T => {
      stack.unshift(resource);
      return resource;
    };

    beforeEach(async () => {
      stack = [];
      middle = own(await NetNs.create('eng', 'middle'));
      const farNs = own(await NetNs.create('eng', 'far'));
      await veth(
        { ns: middle, name: 'eth0', address: '192.168.77.1/24' },
        { ns: farNs, name: 'eth0', address: '192.168.77.2/24' },
      );
      await middle.sysctl({ 'net.ipv4.ip_forward': 1, 'net.ipv4.conf.all.rp_filter': 0 });
      await middle.sysctl({ 'net.ipv4.conf.default.rp_filter': 0 });
      [inside, outside, far] = [
        own(await Remote.start(middle)),
        own(await Remote.start(middle)),
        own(await Remote.start(farNs)),
      ];
      await far.udpListen('192.168.77.2', 8285);
    });
    afterEach(async () => {
      for (const resource of stack) await resource[Symbol.asyncDispose]();
    });

    async function chain(options: Partial<DataplaneOptions> = {}): Promise<void> {
      const common = { sourceCheck: 'off', workers: 1, ...options } as const;
      const entry = { ...common, device: 'in0', bind: { address: '127.0.0.1' }, local: ['10.1.16.0/24'] };
      await inside.open(entry);
      await outside.open({ ...common, device: 'out0', bind: { address: '192.168.77.1' }, local: ['10.1.15.0/24'] });
      await outside.routes([['10.1.16.0/24', '192.168.77.2']]);
      for (const device of ['in0', 'out0']) await middle.ip('link', 'set', device, 'mtu', '1472', 'up');
      await middle.ip('route', 'add', '10.1.16.0/24', 'dev', 'out0');
      await middle.ip('route', 'add', '10.1.15.0/24', 'dev', 'in0');
    }

    const send = (packets: readonly Uint8Array[]): Promise<void> =>
      inside.udpSend({ address: '127.0.0.1', port: 8285, datagrams: packets.map(toHex) });

    async function received(count: number): Promise<readonly Datagram[]> {
      const all: Datagram[] = [];
      await until(async () => all.push(...(await far.udpReceived(8285))) >= count, {
        what: `${String(count)} datagrams to arrive`,
      });
      return all;
    }

    it.each([{}, { offload: { tun: 'none', udp: 'single' } }] as const)(
      'is flannel’s golden packet, byte for byte (%o)',
      async (options) => {
        await chain(options);
        await send([hex(GOLDEN_IN)]);
        const [datagram] = await received(1);
        expect(datagram).toMatchObject({ hex: GOLDEN_OUT, from: '192.168.77.1' });
      },
    );

    it('leaves inner packets alone: options, fragments, TCP, and protocols nobody knows', async () => {
      await chain();
      const [src, dst] = ['10.1.15.2', '10.1.16.2'];
      const packets = [
        ipv4({ src, dst, payload: ramp(40), protocol: 253, tos: 0xb9 }),
        ipv4({ src, dst, payload: ramp(40), options: [0x94, 4, 0, 0] }),
        ipv4({ src, dst, payload: ramp(48), moreFragments: true, id: 7 }),
        ipv4({ src, dst, payload: ramp(13), fragmentOffset: 48, id: 7 }),
        tcpPacket({ src, dst, payload: ramp(99), flags: 0x18, options: [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2] }),
        udpPacket({ src, dst, payload: ramp(1) }),
        udpPacket({ src, dst, payload: ramp(1444) }),
        ipv4({ src, dst, payload: [], protocol: 59 }),
      ];
      await send(packets);
      const got = (await received(packets.length)).map(({ hex }) => hex).sort();
      // One hop less, and the header checksum that goes with it: everything else as it was.
      const wanted = packets.map((packet) => {
        const sum = ((packet[10]! << 8) | packet[11]!) + 0x0100;
        const copy = Uint8Array.from(packet);
        copy[8]! -= 1;
        const folded = (sum & 0xffff) + (sum >>> 16);
        copy.set([folded >>> 8, folded & 0xff], 10);
        return toHex(copy);
      });
      expect(got).toEqual(wanted.sort());
    });

    const flows = Array.from({ length: 64 }, (_, i) =>
      udpPacket({ src: '10.1.15.2', dst: '10.1.16.2', sport: 20_000 + i, dport: 53, payload: ramp(20, i) }),
    );

    it('spreads flows over source ports, and each flow keeps its own', async () => {
      await chain();
      await send([...flows, ...flows, ...flows]);
      const ports = new Map<string, Set<number>>();
      for (const { hex, port } of await received(192)) {
        const flow = hex.slice(40, 44);
        ports.set(flow, (ports.get(flow) ?? new Set()).add(port));
      }
      expect(ports.size).toBe(64);
      for (const used of ports.values()) expect(used.size).toBe(1);
      expect(new Set([...ports.values()].flatMap((used) => [...used])).size).toBeGreaterThanOrEqual(10);
    });

    it('sends from the one bound port when the source port is fixed', async () => {
      await chain({ sourcePort: 'fixed' });
      await send(flows);
      expect(new Set((await received(64)).map(({ port }) => port))).toEqual(new Set([8285]));
    });

    it('joins what waited into UDP superpackets, and cuts them again behind the second TUN', async () => {
      await chain();
      const count = 3000;
      const stream = Array.from({ length: count }, (_, i) =>
        udpPacket({
          src: '10.1.15.2',
          dst: '10.1.16.2',
          ip: { dontFragment: true, id: 0 },
          payload: [...ramp(1000), i >> 8, i & 255],
        }),
      );
      // The only worker is down for a while, longer each time: datagrams wait in its socket, so that it finds many.
      const restarts = 6;
      for (let i = 1; i <= restarts; i++) {
        await inside.call('injectFailure', { worker: 0, how: STOP_THROW });
        const state = i < restarts ? 'running' : 'restarting';
        await until(
          async () => {
            const [worker] = (await inside.stats()).workers;
            return worker!.restarts === i && worker!.state === state;
          },
          { what: `the worker to be ${state}`, intervalMs: 1 },
        );
      }
      await send(stream);
      const got = await received(count);
      expect(got.map(({ hex }) => Number.parseInt(hex.slice(-4), 16))).toEqual(stream.map((_, i) => i));
      for (const { hex, length } of got) {
        expect(length).toBe(1030);
        expect(hex.slice(56, -4)).toBe(toHex(ramp(1000)));
      }
      const [entered, left] = [(await inside.stats()).totals, (await outside.stats()).totals];
      expect(entered.ingressPackets).toBe(count);
      expect(left.egressPackets).toBe(count);
      expect(entered.ingressSuperpackets).toBeLessThan(count / 2);
      expect(left.egressSuperpackets).toBeLessThan(count / 2);
      const unwanted = ([name, value]: [string, number]) => /^(drop(?!Multicast)|fallback)/.test(name) && value !== 0;
      expect([...Object.entries(entered), ...Object.entries(left)].filter(unwanted)).toEqual([]);
    });
  },
);
