/**
 * Peer probes on real sockets: what peers learn of each other, and that nobody else gets an answer.
 */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { PeerStats } from '../../src/dataplane/dataplane.js';
import { EngineLab, type Host } from '../support/engine-lab.js';
import { until } from '../support/process.js';
import type { Remote } from '../support/remote.js';
import { missing } from '../support/requires.js';

const needs = { root: true, tun: true, commands: ['ip', 'ping'], files: ['dist/dataplane/dataplane.js'] };
const QUESTION = '707770010100000700000000000003e8';

describe.skipIf(missing(needs))('peer probes', () => {
  let lab: EngineLab;
  let a: Host;
  let b: Host;
  let one: Remote;
  let two: Remote;

  beforeEach(async () => {
    lab = await EngineLab.create(2);
    [a, b] = lab.hosts as [Host, Host];
    one = await lab.remote(a.ns);
    two = await lab.remote(b.ns);
  });
  afterEach(async () => await lab[Symbol.asyncDispose]());

  const peerOf = async (remote: Remote): Promise<PeerStats> => {
    const [peer] = (await remote.stats()).peers;
    if (peer === undefined) throw new Error('no peer');
    return peer;
  };
  const logged = (remote: Remote, text: RegExp): number =>
    remote.events.filter((event) => text.test(event.text ?? '')).length;

  it.each([
    ['an address each', {}],
    ['IPv6, three workers and one source port', { workers: 3, sourcePort: 'fixed' as const }],
  ])('round trip, loss and last heard: %s', async (name, more) => {
    const six = name.startsWith('IPv6');
    for (const [remote, host, other] of [
      [one, a, b],
      [two, b, a],
    ] as const) {
      const bind = { address: six ? `fd76::${String(host.number)}` : host.underlay };
      await remote.open(lab.options(host, { peerProbes: true, ...more, bind }));
      await remote.routes([[other.subnet, six ? `fd76::${String(other.number)}` : other.underlay]]);
    }
    await until(async () => (await peerOf(one)).probe?.state === 'ok', { what: 'an answer' });
    const peer = await peerOf(one);
    expect(peer.probe!.rttUs).toBeGreaterThan(1);
    expect(peer.probe!.rttUs).toBeLessThan(1_000_000);
    expect(peer.lastHeardMs).toBeLessThan(5000);
    // Probes are no packets.
    expect(peer).toMatchObject({ txPackets: 0, rxPackets: 0 });
    const { totals } = await two.stats();
    expect(totals.probesAnswered).toBeGreaterThan(0);
    expect(totals.dropShort + totals.dropUnknownSender).toBe(0);
  });

  it('a dead host shows in the loss and keeps its routes, and its return is told', async () => {
    await one.open(lab.options(a, { peerProbes: true }));
    await two.open(lab.options(b));
    await one.routes([[b.subnet, b.underlay]]);
    await two.routes([[a.subnet, a.underlay]]);
    await until(async () => (await peerOf(one)).probe?.state === 'ok', { what: 'an answer' });
    // B only answers.
    expect((await peerOf(two)).probe).toBeUndefined();
    await b.ns.ip('link', 'set', 'eth0', 'down');
    await until(async () => (await peerOf(one)).probe?.state === 'unanswered', { what: 'silence', timeoutMs: 30_000 });
    expect((await peerOf(one)).probe!.lossPermille).toBeGreaterThan(0);
    expect((await one.stats()).routes).toBe(1);
    expect(logged(one, /^192\.168\.77\.2 left 5 probes unanswered: /)).toBe(1);
    await b.ns.ip('link', 'set', 'eth0', 'up');
    await until(async () => (await peerOf(one)).probe?.state === 'ok', { what: 'its return', timeoutMs: 30_000 });
    expect(logged(one, /^192\.168\.77\.2 answers probes again$/)).toBe(1);
  });

  it('a host that does not know them stays "no-probe" and keeps its routes', async () => {
    await one.open(lab.options(a, { peerProbes: true }));
    // A socket that takes datagrams and says nothing, as flanneld's.
    await two.udpListen(b.underlay, 8285);
    await one.routes([[b.subnet, b.underlay]]);
    await until(async () => ((await peerOf(one)).probe?.lossPermille ?? 0) === 1000, { what: 'a judged question' });
    expect((await peerOf(one)).probe).toEqual({ state: 'no-probe', lossPermille: 1000 });
    expect((await one.stats()).routes).toBe(1);
    const heard = await two.udpReceived(8285);
    expect(heard[0]).toMatchObject({ from: a.underlay, port: 8285, length: 16 });
    expect(heard[0]!.hex).toMatch(/^7077700101/);
  });

  it('strangers get no answer, and an answer to no question counts for nothing', async () => {
    await one.open(lab.options(a, { peerProbes: true }));
    const stranger = await lab.remote(b.ns);
    await stranger.udpListen(b.underlay, 9000);
    const send = (hex: string): Promise<void> =>
      stranger.udpSend({ address: a.underlay, port: 8285, datagrams: [hex], from: 9000 });
    await send(QUESTION);
    await until(async () => (await one.stats()).totals.probesIgnored === 1, { what: 'the question' });
    await one.routes([[b.subnet, b.underlay]]);
    await send(QUESTION.replace('7077700101', '7077700102'));
    await until(async () => (await one.stats()).totals.probesIgnored === 2, { what: 'the forged answer' });
    expect((await peerOf(one)).probe?.state ?? 'no-probe').toBe('no-probe');
    // Now it holds a lease: the same question is answered.
    await send(QUESTION);
    const answer = await until(async () => (await stranger.udpReceived(9000)).at(-1), { what: 'the answer' });
    expect(answer).toMatchObject({ from: a.underlay, port: 8285, hex: QUESTION.replace('7077700101', '7077700102') });
    expect((await one.stats()).totals.probesAnswered).toBe(1);
  });
});
