import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Address } from '../../../src/net/prefix.js';
import { MemoryNetwork } from '../../../src/testing.js';
import type { Datagram, MemoryNetworkOptions } from '../../../src/testing.js';

const A = { address: Address.parse('192.0.2.1'), port: 1 };
const B = { address: Address.parse('192.0.2.2'), port: 2 };
const SIX = { address: Address.parse('2001:db8::2'), port: 2 };

function receiver(network: MemoryNetwork, endpoint = B): Datagram[] {
  const got: Datagram[] = [];
  network.bind(endpoint, (datagram) => got.push(datagram) > 0);
  return got;
}

/** Sends `count` numbered datagrams, lets everything arrive and returns their numbers in that order. */
function numbers(options: MemoryNetworkOptions, count: number): { network: MemoryNetwork; order: number[] } {
  const network = new MemoryNetwork(options);
  const got = receiver(network);
  for (let i = 0; i < count; i++) {
    network.send(A, B, Uint8Array.of(i >> 8, i));
    network.advance();
  }
  network.advance(100);
  return { network, order: got.map(({ payload }) => (payload[0]! << 8) | payload[1]!) };
}

const ALL = Array.from({ length: 1000 }, (_, i) => i);

describe('the network in memory', () => {
  it('without faults delivers everything at once, in order, as a copy', () => {
    const network = new MemoryNetwork();
    const got = receiver(network);
    const payload = Uint8Array.of(1, 2, 3);
    expect(network.send(A, B, payload)).toBe(true);
    payload.fill(9);
    expect(got).toEqual([{ from: A, to: B, payload: Uint8Array.of(1, 2, 3), mark: 0 }]);
    expect(numbers({}, 1000).order).toEqual(ALL);
  });

  it('keeps the order over any constant latency', () => {
    const { network, order } = numbers({ latencyTicks: 7 }, 1000);
    expect(order).toEqual(ALL);
    expect(network.stats).toMatchObject({ sent: 1000, delivered: 1000, inFlight: 0 });
  });

  it('takes as many ticks as it says', () => {
    const network = new MemoryNetwork({ latencyTicks: 3 });
    const got = receiver(network);
    network.send(A, B, Uint8Array.of(1));
    network.advance(2);
    expect([got.length, network.stats.inFlight]).toEqual([0, 1]);
    network.advance();
    expect([got.length, network.now]).toEqual([1, 3]);
  });

  it('loses, doubles and overtakes about as often as it says', () => {
    const lost = numbers({ loss: 0.2 }, 1000);
    expect(1000 - lost.order.length).toBe(lost.network.stats.lost);
    expect(lost.network.stats.lost).toBeGreaterThan(150);
    expect(lost.network.stats.lost).toBeLessThan(250);
    const doubled = numbers({ duplication: 0.2 }, 1000);
    expect(doubled.order.length).toBe(1000 + doubled.network.stats.duplicated);
    expect(doubled.network.stats.duplicated).toBeGreaterThan(150);
    const mixed = numbers({ reordering: 0.2 }, 1000);
    expect(mixed.order).not.toEqual(ALL);
    expect(mixed.order.toSorted((a, b) => a - b)).toEqual(ALL);
    const late = mixed.order.map((number, at) => at - number);
    expect(Math.max(...late)).toBeLessThanOrEqual(8);
  });

  it('turns one bit at a time', () => {
    const network = new MemoryNetwork({ corruption: 1 });
    const got = receiver(network);
    for (let i = 0; i < 50; i++) network.send(A, B, new Uint8Array(16));
    for (const { payload } of got) {
      const ones = payload.reduce((sum, byte) => sum + byte.toString(2).replaceAll('0', '').length, 0);
      expect(ones).toBe(1);
    }
    expect(network.stats.corrupted).toBe(50);
    network.send(A, B, new Uint8Array(0));
    expect(got.at(-1)!.payload.length).toBe(0);
  });

  it('refuses at the sender what its device cannot send, and swallows what a path cannot carry', () => {
    const network = new MemoryNetwork({ mtu: 1500, pathMtu: 1400 });
    receiver(network);
    receiver(network, SIX);
    expect(network.send(A, B, new Uint8Array(1473))).toBe(false);
    expect(network.send(A, B, new Uint8Array(1472))).toBe(true);
    expect(network.send(A, B, new Uint8Array(1373))).toBe(true);
    expect(network.send(A, B, new Uint8Array(1372))).toBe(true);
    expect(network.send(SIX, SIX, new Uint8Array(1453))).toBe(false);
    expect(network.send(SIX, SIX, new Uint8Array(1352))).toBe(true);
    expect(network.stats).toMatchObject({ sent: 4, tooBig: 2, delivered: 2 });
  });

  it('has paths of their own, in one direction', () => {
    const network = new MemoryNetwork();
    const [atA, atB] = [receiver(network, A), receiver(network)];
    network.setPath(A.address, '192.0.2.2', { loss: 1 });
    network.send(A, B, Uint8Array.of(1));
    network.send(B, A, Uint8Array.of(1));
    expect([atA.length, atB.length]).toEqual([1, 0]);
    network.setPath(A.address, B.address);
    network.send(A, B, Uint8Array.of(1));
    expect(atB.length).toBe(1);
  });

  it('gives an address and port to one receiver at a time', () => {
    const network = new MemoryNetwork();
    const release = network.bind(B, () => true);
    expect(() => network.bind(B, () => true)).toThrow(expect.objectContaining({ code: 'PORT_IN_USE' }));
    network.bind({ ...B, port: 3 }, () => true);
    release();
    network.send(A, B, Uint8Array.of(1));
    const got = receiver(network);
    release(); // the second time it is somebody else's
    network.send(A, B, Uint8Array.of(1));
    expect([network.stats.noReceiver, got.length]).toEqual([1, 1]);
  });

  it.each([{ loss: 1.1 }, { loss: -0.1 }, { duplication: Number.NaN }, { latencyTicks: 0.5 }, { pathMtu: -1 }])(
    'refuses %j',
    (faults) => {
      expect(() => new MemoryNetwork(faults)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
      expect(() => new MemoryNetwork().setPath('192.0.2.1', '192.0.2.2', faults)).toThrow(/give a/);
    },
  );

  it('accounts for every datagram and repeats itself, whatever the faults', () => {
    const share = fc.double({ min: 0, max: 1, noNaN: true });
    const faults = fc.record({
      seed: fc.integer(),
      loss: share,
      duplication: share,
      corruption: share,
      reordering: share,
      reorderingTicks: fc.nat(20),
      latencyTicks: fc.nat(5),
      pathMtu: fc.constantFrom(30, 65_535),
      socketQueue: fc.nat(40),
    });
    fc.assert(
      fc.property(faults, (options) => {
        const run = () => {
          const network = new MemoryNetwork(options);
          let room = options.socketQueue;
          const got: string[] = [];
          network.bind(B, ({ payload }) => room-- > 0 && got.push(payload.join()) > 0);
          for (let i = 0; i < 60; i++) {
            network.send(A, i % 7 === 0 ? A : B, Uint8Array.of(i, 1, 2));
            network.advance(i % 3);
          }
          return { stats: network.stats, got };
        };
        const { stats, got } = run();
        const { lost, tooBig, noReceiver, overflow, delivered, inFlight } = stats;
        expect(lost + tooBig + noReceiver + overflow + delivered + inFlight).toBe(stats.sent + stats.duplicated);
        expect(got.length).toBe(delivered);
        expect(run()).toEqual({ stats, got });
      }),
    );
  });
});
