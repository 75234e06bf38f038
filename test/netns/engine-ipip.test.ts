/**
 * IP in IP over raw sockets, between two data planes with pods. This kernel need not have the ipip module: what is on
 * the wire is held against RFC 2003.
 */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { EngineLab, answers, type Host } from '../support/engine-lab.js';
import { until } from '../support/process.js';
import type { Remote } from '../support/remote.js';
import type { RemoteError } from '../support/remote.js';
import { missing } from '../support/requires.js';

const MIB = 1 << 20;
const needs = { root: true, tun: true, commands: ['ip', 'ping', 'tcpdump'], files: ['dist/dataplane/dataplane.js'] };

describe.skipIf(missing(needs))('ipip', () => {
  let lab: EngineLab;
  let a: Host;
  let b: Host;
  let one: Remote;
  let two: Remote;

  beforeEach(async () => {
    lab = await EngineLab.create(2, 1480);
    [a, b] = lab.hosts as [Host, Host];
    one = await lab.remote(a.ns);
    two = await lab.remote(b.ns);
  });
  afterEach(async () => await lab[Symbol.asyncDispose]());

  /** IPv4 routes only: protocol 4 carries nothing else. */
  async function join(remote: Remote, host: Host, other: Host, more: object = {}): Promise<void> {
    const opened = await remote.open(lab.options(host, { encapsulation: 'ipip', ...more }));
    expect(opened.mtu).toMatchObject({ underlay: 1500, overhead: 20, overlay: 1480 });
    expect(opened.capabilities).toMatchObject({ workers: 1, udpSegments: 1 });
    await remote.routes([[other.subnet, other.underlay]]);
    await host.ns.ip('address', 'add', `10.244.${String(host.number)}.0/32`, 'dev', opened.device.name);
    await host.ns.ip('link', 'set', opened.device.name, 'mtu', String(opened.mtu.overlay), 'up');
    await host.ns.ip('route', 'add', '10.244.0.0/16', 'dev', opened.device.name);
  }

  it.each([
    ['the best rung', {}],
    ['no offload on the TUN', { offload: { tun: 'none' } }],
    ['a call for every packet', { offload: { tun: 'tso', udp: 'single' } }],
  ] as const)('carries packets of every size both ways: %s', async (_, more) => {
    await join(one, a, b, more);
    await join(two, b, a);
    for (const size of ['56', '1452', '6000']) {
      expect(await answers(a.pod, '-c', '5', '-i', '0.05', '-s', size, b.podAddress)).toBe(5);
    }
    for (const [from, to] of [
      [a, b],
      [b, a],
    ] as const) {
      const server = await lab.remote(to.pod);
      const client = await lab.remote(from.pod);
      const port = await server.tcpListen(to.podAddress);
      const { sent, arrived } = await client.tcpSend(to.podAddress, port, 24 * MIB);
      expect(arrived).toEqual(sent);
    }
    const { totals } = await two.stats();
    expect(totals.dropMalformed + totals.dropTruncated + totals.dropShort + totals.dropSpoofedSource).toBe(0);
  });

  it('is an IPv4 header of protocol 4 in front of the packet, with DF and the inner congestion mark', async () => {
    await join(one, a, b);
    const seen = b.ns.spawn('tcpdump', ['-l', '-n', '-x', '-i', 'eth0', '-c', '1', 'ip proto 4']);
    await seen.output(/listening on/, { from: 'stderr' });
    await a.pod.run('ping', ['-n', '-c', '1', '-W', '1', '-Q', '0xb9', b.podAddress]);
    const { stdout } = await seen.finished;
    const bytes = [...stdout.matchAll(/0x[0-9a-f]{4}:((?: {1,2}[0-9a-f]{2,4})+)/g)].map(([, line]) =>
      line!.replaceAll(' ', ''),
    );
    const packet = bytes.join('');
    const [outer, inner] = [packet.slice(0, 40), packet.slice(40)];
    // Version and length, no DSCP and ECT(1), length; then DF without offset, TTL 64, protocol 4, source, destination.
    expect(outer.slice(0, 8)).toBe(`4501${(20 + 84).toString(16).padStart(4, '0')}`);
    expect(outer.slice(12, 20)).toBe('40004004');
    expect(outer.slice(24)).toBe('c0a84d01c0a84d02');
    expect(inner.slice(0, 8)).toBe(`45b9${(84).toString(16).padStart(4, '0')}`);
    expect(inner.slice(24, 40)).toBe('0af401020af40202');
  });

  it('refuses strangers, more workers, and an IPv6 underlay', async () => {
    await join(one, a, b);
    await join(two, b, a);
    await one.routes([]);
    const before = await one.stats();
    await answers(b.pod, '-c', '3', '-i', '0.05', '-W', '1', a.podAddress);
    await until(async () => (await one.changes(before))['dropUnknownSender'] === 3, { what: 'the drops' });
    const third = await lab.remote(a.ns);
    const refused = async (more: object): Promise<RemoteError> =>
      (await third
        .open(lab.options(a, { encapsulation: 'ipip', device: 'x0', ...more }))
        .catch((error: unknown) => error)) as RemoteError;
    expect((await refused({ workers: 2 })).message).toMatch(/^option workers is 2: give a whole number from 1 to 1$/);
    expect((await refused({ bind: { address: 'fd76::1' } })).message).toMatch(/needs an IPv4 underlay$/);
    expect((await refused({ device: 'flannel0' })).code).toBe('DEVICE_IN_USE');
  });
});
