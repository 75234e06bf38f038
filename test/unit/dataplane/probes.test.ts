import { describe, expect, test } from 'vitest';
import type { Logger } from '../../../src/dataplane/logger.js';
import { PeerProbes } from '../../../src/dataplane/probes.js';
import type { NextHopRow } from '../../../src/fib/next-hops.js';
import { PEER_PROBE_ANSWERS, PEER_PROBE_MICROSECONDS, PEER_WORDS } from '../../../src/io/batch.js';
import { Address } from '../../../src/net/prefix.js';

const ROUND = 10;

function row(hostId: number, address: string, port = 8285): NextHopRow {
  return {
    index: hostId + 10,
    address: Address.parse(address),
    port,
    vtepMac: undefined,
    hostId,
    pathMtu: 1500,
    routes: 1,
  };
}

/** Probes over counters that the test writes; `answer` decides what becomes of each question. */
function setUp(rows: NextHopRow[], answer: (row: NextHopRow) => number | undefined) {
  const peers = new Float64Array(10_000 * PEER_WORDS);
  const asked: string[] = [];
  const log: string[] = [];
  const probes = new PeerProbes({
    batches: [{ peers }],
    peers: () => rows,
    ask: (peer) => {
      asked.push(peer.address.toString());
      const microseconds = answer(peer);
      if (microseconds === undefined) return;
      peers[peer.hostId * PEER_WORDS + PEER_PROBE_ANSWERS]! += 1;
      peers[peer.hostId * PEER_WORDS + PEER_PROBE_MICROSECONDS]! += microseconds;
    },
    logger: {
      warn: (_: object, text: string) => log.push(text),
      info: (_: object, text: string) => log.push(text),
    } as unknown as Logger,
  });
  const rounds = (count: number): void => {
    for (let i = 0; i < count * ROUND; i++) probes.tick();
  };
  return { probes, peers, asked, log, rounds };
}

describe('peer probes', () => {
  test('each host is asked once a round, however many ports and routes it has', () => {
    const rows = [row(1, '192.0.2.1'), row(1, '192.0.2.1', 9000), row(2, '192.0.2.2'), row(0, '192.0.2.9')];
    const { asked, rounds } = setUp(rows, () => 100);
    rounds(1);
    expect(asked.sort()).toEqual(['192.0.2.1', '192.0.2.2']);
    rounds(2);
    expect(asked).toHaveLength(6);
  });

  test('the round trip is smoothed, the loss is that of the last 32, and the open question is no loss', () => {
    let next: number | undefined = 800;
    const { probes, rounds } = setUp([row(1, '192.0.2.1')], () => next);
    expect(probes.of(1)).toBeUndefined();
    rounds(1);
    expect(probes.of(1)).toEqual({ state: 'no-probe', lossPermille: 0 });
    rounds(1);
    expect(probes.of(1)).toEqual({ state: 'ok', rttUs: 800, lossPermille: 0 });
    next = 1600;
    rounds(1); // judges an 800
    rounds(1);
    expect(probes.of(1)!.rttUs).toBe(900);
    next = undefined;
    rounds(1);
    next = 800;
    rounds(1);
    expect(probes.of(1)!.lossPermille).toBe(Math.round(1000 / 5));
    rounds(31);
    expect(probes.of(1)!.lossPermille).toBe(Math.round(1000 / 32));
    rounds(1);
    expect(probes.of(1)!.lossPermille).toBe(0);
  });

  test('silence is told after five, once, and so is the return; who never answered is not told', () => {
    const silent = new Set<string>();
    const rows = Array.from({ length: 8 }, (_, i) => row(i + 1, `192.0.2.${i + 1}`));
    const { probes, log, rounds } = setUp(rows, ({ address }) => (silent.has(address.toString()) ? undefined : 50));
    silent.add('192.0.2.8');
    rounds(3);
    for (let i = 1; i <= 6; i++) silent.add(`192.0.2.${i}`);
    rounds(20);
    expect(log).toEqual([
      '192.0.2.1, 192.0.2.2, 192.0.2.3, 192.0.2.4 and 2 more left 5 probes unanswered: the host or the way to it may be down, its routes stay',
    ]);
    expect([1, 7, 8].map((id) => probes.of(id)!.state)).toEqual(['unanswered', 'ok', 'no-probe']);
    silent.clear();
    rounds(2);
    expect(log[1]).toBe('192.0.2.1, 192.0.2.2, 192.0.2.3, 192.0.2.4 and 2 more answers probes again');
    expect(log).toHaveLength(2);
  });

  test('an id that goes to another host starts anew, and one that is gone is forgotten', () => {
    const rows = [row(1, '192.0.2.1'), row(2, '192.0.2.2')];
    const { probes, peers, rounds } = setUp(rows, ({ address }) =>
      address.toString() === '192.0.2.3' ? undefined : 70,
    );
    rounds(5);
    rows[0] = row(1, '192.0.2.3');
    rows.pop();
    peers.fill(0);
    rounds(1);
    expect(probes.of(1)).toEqual({ state: 'no-probe', lossPermille: 0 });
    expect(probes.of(2)).toBeUndefined();
  });

  test('5,000 peers are asked at no more than 500 a second, all of them in turn', () => {
    const rows = Array.from({ length: 5000 }, (_, i) => row(i + 1, `10.0.${i >> 8}.${i & 255}`));
    const { probes, asked } = setUp(rows, () => 100);
    for (let i = 1; i <= 100; i++) {
      const before = asked.length;
      probes.tick();
      expect(asked.length - before).toBeLessThanOrEqual(50);
    }
    expect(new Set(asked).size).toBe(5000);
  });
});
