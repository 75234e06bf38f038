/** The writer's interface. Longest-prefix match itself is tested in test/property/fib. */
import { beforeEach, describe, expect, it } from 'vitest';
import { PodwireError } from '../../../src/errors.js';
import type { FibOptions, NextHop } from '../../../src/fib/fib.js';
import { Fib } from '../../../src/fib/fib.js';
import type { FibMemory } from '../../../src/fib/layout.js';
import {
  FIRST_NEXT_HOP,
  HEAP_START,
  LOCAL,
  NO_ROUTE,
  SELF,
  SENDERS4_ROOT,
  createFibMemory,
  rowsView,
  wordsView,
} from '../../../src/fib/layout.js';
import { FibReader } from '../../../src/fib/lookup.js';
import { Address, MacAddress, Prefix } from '../../../src/net/prefix.js';

let memory: FibMemory;
let fib: Fib;
let reader: FibReader;

function open(limits: Partial<Parameters<typeof createFibMemory>[0]> = {}, options: FibOptions = {}): void {
  memory = createFibMemory({ maxRoutes: 100, maxNextHops: 20, readers: 2, ...limits });
  fib = new Fib(memory, options);
  reader = new FibReader(memory, 0);
}
beforeEach(() => open());

const wordsOf = (text: string): number[] => {
  const address = Address.parse(text);
  return Array.from({ length: address.bytes.length / 4 }, (_, i) => address.word(i));
};
function index(text: string): number {
  const [a, b, c, d] = wordsOf(text);
  return b === undefined ? reader.lookup4(a!) : reader.lookup6(a!, b, c!, d!);
}
function sender(text: string): number {
  const [a, b, c, d] = wordsOf(text);
  return b === undefined ? reader.lookupSender4(a!) : reader.lookupSender6(a!, b, c!, d!);
}
function refusal(action: () => unknown): PodwireError {
  try {
    action();
  } catch (error) {
    expect(error).toBeInstanceOf(PodwireError);
    expect((error as Error).message).not.toContain('\n');
    return error as PodwireError;
  }
  throw new Error('nothing was thrown');
}
const host = (n: number, more: Partial<NextHop> = {}): NextHop => ({ address: `192.0.2.${n}`, ...more });

describe('routes', () => {
  it('are set, changed, looked up, listed and deleted', () => {
    fib.set('10.1.0.0/16', host(1));
    fib.set(Prefix.parse('10.1.2.0/24'), host(2, { port: 8472 }));
    fib.set('fd00:1::/64', { address: Address.parse('2001:db8::7') });
    expect(fib.size).toBe(3);
    expect(fib.lookup('10.1.2.3')).toEqual({ address: Address.parse('192.0.2.2'), port: 8472 });
    expect(fib.lookup(Address.parse('10.1.3.3'))?.address.toString()).toBe('192.0.2.1');
    expect(fib.lookup('fd00:1::5')?.address.toString()).toBe('2001:db8::7');
    expect(fib.lookup('10.2.0.0')).toBeUndefined();
    expect([...fib.entries()].map(([prefix, next]) => [prefix, next.address, next.port].join(' '))).toEqual([
      '10.1.0.0/16 192.0.2.1 8285',
      '10.1.2.0/24 192.0.2.2 8472',
      'fd00:1::/64 2001:db8::7 8285',
    ]);
    expect(fib.delete('10.1.2.0/24')).toBe(true);
    expect(fib.delete('10.1.2.0/24')).toBe(false);
    expect(fib.delete('10.1.0.0/15')).toBe(false);
    expect(fib.lookup('10.1.2.3')?.address.toString()).toBe('192.0.2.1');
    expect(fib.size).toBe(2);
  });

  it('listed at one moment may be changed while they are walked', () => {
    for (let i = 0; i < 10; i++) fib.set(`10.1.${i}.0/24`, host(1 + i));
    const seen: string[] = [];
    for (const [prefix] of fib.entries()) {
      seen.push(prefix.toString());
      for (let i = 0; i < 10; i++) fib.delete(`10.1.${i}.0/24`);
    }
    expect(seen).toHaveLength(10);
  });

  it('count a generation for each call that publishes, none for one that does not', () => {
    const counted = (action: () => unknown): number => {
      const before = fib.generation;
      action();
      expect(reader.generation).toBe(fib.generation);
      return fib.generation - before;
    };
    expect(counted(() => fib.set('10.1.0.0/16', host(1)))).toBe(1);
    expect(counted(() => fib.set('10.1.0.0/16', host(1, { port: 8285, senders: [] })))).toBe(0);
    expect(counted(() => fib.replace([['10.1.0.0/16', host(1)]]))).toBe(0);
    expect(counted(() => fib.replace([['10.1.0.0/16', host(2)], ['10.2.0.0/16', host(3)]]))).toBe(1); // prettier-ignore
    expect(counted(() => fib.setLocal(['10.3.0.0/16']))).toBe(1);
    expect(counted(() => fib.setLocal(['10.3.0.0/16']))).toBe(0);
    expect(counted(() => fib.setPathMtu('192.0.2.2', 1400))).toBe(1);
    expect(counted(() => fib.setPathMtu('192.0.2.1', 1400))).toBe(0);
    expect(counted(() => fib.delete('10.9.0.0/16'))).toBe(0);
    expect(counted(() => fib.replace([]))).toBe(1);
  });

  it('of a replace are the last for each prefix, and unchanged ones keep their next hop', () => {
    fib.set('10.1.0.0/16', host(1));
    fib.set('10.2.0.0/16', host(2));
    const kept = index('10.1.0.0');
    fib.replace([
      ['10.3.0.0/16', host(3)],
      ['10.1.0.0/16', host(1)],
      ['10.3.99.99/16', host(4)],
    ]);
    expect(index('10.1.0.0')).toBe(kept);
    expect(fib.lookup('10.2.0.0')).toBeUndefined();
    expect(fib.lookup('10.3.0.0')?.address.toString()).toBe('192.0.2.4');
    expect(fib.nextHopRows().map((row) => row.address.toString())).toEqual(['192.0.2.1', '192.0.2.4']);
  });

  it.each<[string, NextHop, string, RegExp]>([
    ['10.0.0.0/33', host(1), 'INVALID_ADDRESS', /"10\.0\.0\.0\/33"/],
    ['10.0.0.0/8', { address: 'example' }, 'INVALID_ADDRESS', /"example"/],
    ['10.0.0.0/8', { address: '0.0.0.0' }, 'INVALID_ADDRESS', /^0\.0\.0\.0 cannot be a next hop/],
    ['10.0.0.0/8', { address: '::' }, 'INVALID_ADDRESS', /^:: cannot be a next hop/],
    ['10.0.0.0/8', { address: '224.0.0.1' }, 'INVALID_ADDRESS', /^224\.0\.0\.1 cannot/],
    ['10.0.0.0/8', { address: '255.255.255.255' }, 'INVALID_ADDRESS', /^255\.255\.255\.255 cannot/],
    ['10.0.0.0/8', { address: 'ff02::1' }, 'INVALID_ADDRESS', /^ff02::1 cannot/],
    ['10.0.0.0/8', host(1, { port: 0 }), 'INVALID_ARGUMENT', /port 0: give a whole number from 1 to 65535/],
    ['10.0.0.0/8', host(1, { port: 65536 }), 'INVALID_ARGUMENT', /port 65536/],
    ['10.0.0.0/8', host(1, { port: 1.5 }), 'INVALID_ARGUMENT', /port 1\.5/],
    ['10.0.0.0/8', host(1, { mtu: 67 }), 'INVALID_ARGUMENT', /path MTU 67 must be/],
    ['10.0.0.0/8', host(1, { mtu: 65536 }), 'INVALID_ARGUMENT', /path MTU 65536 must be/],
    ['10.0.0.0/8', host(1, { senders: ['::'] }), 'INVALID_ADDRESS', /^:: cannot be a sender/],
    ['10.0.0.0/8', host(1, { vtepMac: '00:11' }), 'INVALID_ADDRESS', /"00:11"/],
  ])('%s through %o is refused in one line', (prefix, nextHop, code, message) => {
    fib.set('10.1.0.0/16', host(9));
    const before = fib.generation;
    for (const action of [
      () => fib.set(prefix, nextHop),
      () => fib.replace([['10.2.0.0/16', host(8)], [prefix, nextHop]]), // prettier-ignore
    ]) {
      const error = refusal(action);
      expect(error.code).toBe(code);
      expect(error.message).toMatch(message);
    }
    expect([...fib.entries()].map(([p]) => p.toString())).toEqual(['10.1.0.0/16']);
    expect(fib.generation).toBe(before);
  });
});

describe('what belongs to this host', () => {
  it('looks up as LOCAL inside own leases and as SELF at own addresses outside of them', () => {
    fib.set('10.0.0.0/8', host(1));
    fib.setLocal(['10.1.0.0/16', 'fd00:1::/64'], ['10.1.0.1', '192.0.2.99', '10.2.0.1', 'fd00:1::1', '2001:db8::99']);
    expect([index('10.1.0.1'), index('10.1.255.255'), index('fd00:1::1')]).toEqual([LOCAL, LOCAL, LOCAL]);
    expect([index('192.0.2.99'), index('10.2.0.1'), index('2001:db8::99')]).toEqual([SELF, SELF, SELF]);
    expect([index('192.0.2.98'), index('2001:db8::98')]).toEqual([NO_ROUTE, NO_ROUTE]);
    expect(index('10.2.0.2')).toBe(FIRST_NEXT_HOP);
    expect(fib.lookup('10.1.0.5')).toBeUndefined();
    expect(fib.lookup('10.2.0.1')).toBeUndefined();
    expect([fib.isLocal('10.1.0.5'), fib.isLocal('10.2.0.1'), fib.isLocal('10.2.0.2')]).toEqual([true, false, false]);
    expect(reader.hostId[LOCAL]).toBe(0);
    expect(reader.hostId[SELF]).toBe(0);
    expect(fib.size).toBe(1);
    fib.setLocal([], ['10.1.0.1']);
    expect([index('10.1.0.1'), index('10.1.0.2'), index('192.0.2.99')]).toEqual([SELF, FIRST_NEXT_HOP, NO_ROUTE]);
  });

  it('hides a route for the same prefix, which can come, change and go beneath', () => {
    fib.set('10.1.0.0/16', host(1));
    fib.setLocal(['10.1.0.0/16']);
    expect(index('10.1.0.0')).toBe(LOCAL);
    fib.set('10.1.0.0/16', host(2));
    expect([index('10.1.0.0'), fib.size]).toEqual([LOCAL, 1]);
    fib.setLocal([]);
    expect(fib.lookup('10.1.0.0')?.address.toString()).toBe('192.0.2.2');
    fib.setLocal(['10.1.0.0/16']);
    expect(fib.delete('10.1.0.0/16')).toBe(true);
    expect([index('10.1.0.0'), fib.size]).toEqual([LOCAL, 0]);
    fib.setLocal([]);
    expect(index('10.1.0.0')).toBe(NO_ROUTE);
  });

  it('is refused whole when one of it is no prefix or address', () => {
    fib.setLocal(['10.1.0.0/16']);
    expect(refusal(() => fib.setLocal(['10.2.0.0/16', '10.3.0.0'])).code).toBe('INVALID_ADDRESS');
    expect(refusal(() => fib.setLocal(['10.2.0.0/16'], ['10.3.0.0/8'])).code).toBe('INVALID_ADDRESS');
    expect([index('10.1.0.0'), index('10.2.0.0')]).toEqual([LOCAL, NO_ROUTE]);
  });
});

describe('next-hop rows', () => {
  const zeros = (n: number): number[] => Array<number>(n).fill(0);
  const row = (at: number): number[] => [...rowsView(memory).subarray(64 * at, 64 * at + 64)];

  it('hold a ready sockaddr_in or sockaddr_in6, host id and MAC', () => {
    fib.set('10.1.0.0/16', { address: '192.0.2.1', port: 8285 });
    const mac = MacAddress.parse('0e:12:34:56:78:9a');
    fib.set('10.2.0.0/16', { address: '2001:db8::abcd', port: 8472, vtepMac: mac });
    // struct sockaddr_in: AF_INET 2, port 8285 = 0x205d, address; length 16; flags; host id 1.
    const v4 = [2, 0, 0x20, 0x5d, 192, 0, 2, 1];
    const v4Tail = [16, 0, 0, 0, 1, 0, 0, 0];
    expect(row(index('10.1.0.0'))).toEqual([...v4, ...zeros(20), ...v4Tail, ...zeros(28)]);
    // struct sockaddr_in6: AF_INET6 10, port 8472 = 0x2118, flow info, address, scope id; length 28; host id 2.
    const v6 = [
      10, 0, 0x21, 0x18, 0, 0, 0, 0, 0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xab, 0xcd, 0, 0, 0, 0,
    ];
    const v6Tail = [28, 0, 0, 0, 2, 0, 0, 0];
    expect(row(index('10.2.0.0'))).toEqual([...v6, ...v6Tail, ...mac.bytes, ...zeros(22)]);
    expect([...row(NO_ROUTE), ...row(LOCAL), ...row(SELF)].every((byte) => byte === 0)).toBe(true);
  });

  it('are shared by equal next hops, and told apart by address, port and MAC', () => {
    fib.set('10.1.0.0/16', host(1));
    fib.set('10.2.0.0/16', host(1, { port: 8285, senders: ['198.51.100.1'], mtu: 1400 }));
    fib.set('10.3.0.0/16', host(1, { port: 9 }));
    fib.set('10.4.0.0/16', host(1, { vtepMac: '0e:00:00:00:00:01' }));
    fib.set('10.5.0.0/16', host(2));
    const indices = [1, 2, 3, 4, 5].map((n) => index(`10.${n}.0.0`));
    expect(indices[1]).toBe(indices[0]);
    expect(new Set(indices).size).toBe(4);
    expect(indices.map((i) => reader.hostId[i])).toEqual([1, 1, 1, 1, 2]);
    expect(fib.nextHopRow(indices[0]!)).toEqual({
      index: indices[0],
      address: Address.parse('192.0.2.1'),
      port: 8285,
      vtepMac: undefined,
      hostId: 1,
      pathMtu: 1400,
      routes: 2,
    });
    expect(fib.nextHopRows()).toHaveLength(4);
    expect([LOCAL, SELF, 99].map((i) => fib.nextHopRow(i))).toEqual([undefined, undefined, undefined]);
    expect(fib.memoryUsage()).toMatchObject({ nextHops: 4, hosts: 2, senders: 3 });
  });

  it('are kept until readers have moved on, then used again', () => {
    fib.set('10.1.0.0/16', host(1));
    const first = index('10.1.0.0');
    reader.enter();
    fib.set('10.1.0.0/16', host(2));
    const bytes = row(first);
    for (let n = 3; n < 20; n++) fib.set('10.1.0.0/16', host(n));
    expect(row(first)).toEqual(bytes);
    expect(reader.hostId[first]).toBe(1);
    reader.leave();
    fib.reclaim();
    for (let n = 1; n <= 20; n++) fib.set(`10.${n}.0.0/16`, host(n));
    const used = new Set(Array.from({ length: 20 }, (_, i) => index(`10.${i + 1}.0.0`)));
    expect(used.size).toBe(20);
    expect(used.has(first)).toBe(true);
    expect(Math.max(...used)).toBeLessThan(FIRST_NEXT_HOP + 20);
  });

  it('are announced when they are new, before a look-up can give them', () => {
    const added: (readonly [number, boolean])[] = [];
    open({}, { onNextHopAdded: (i) => added.push([i, index('10.1.0.0') === i]) });
    fib.set('10.1.0.0/16', host(1));
    const first = index('10.1.0.0');
    fib.set('10.2.0.0/16', host(1, { mtu: 1300 }));
    expect(added).toEqual([[first, false]]);
    fib.replace([]);
    fib.reclaim();
    fib.set('10.1.0.0/16', host(2));
    expect(added).toEqual([
      [first, false],
      [index('10.1.0.0'), false],
    ]);
  });

  it('announce their host when its id gets a new meaning, before a sender look-up can give it', () => {
    const added: (readonly [number, number])[] = [];
    open({}, { onHostAdded: (id) => added.push([id, sender('192.0.2.2')]) });
    fib.set('10.1.0.0/16', host(1));
    fib.set('10.2.0.0/16', host(1, { port: 9 }));
    expect(added).toEqual([[1, 0]]);
    fib.replace([]);
    fib.reclaim();
    fib.set('10.1.0.0/16', host(2));
    expect(added).toEqual([
      [1, 0],
      [1, 0],
    ]);
    expect(sender('192.0.2.2')).toBe(1);
  });
});

describe('path MTU', () => {
  const mtu = (text: string): number => reader.pathMtu[index(text)]!;

  it('starts with the underlay MTU or the one given, and follows setPathMtu for every row of the address', () => {
    open({}, { underlayMtu: 1450 });
    fib.set('10.1.0.0/16', host(1));
    fib.set('10.2.0.0/16', host(1, { port: 9 }));
    fib.set('10.3.0.0/16', host(2, { mtu: 1400 }));
    expect([mtu('10.1.0.0'), mtu('10.2.0.0'), mtu('10.3.0.0')]).toEqual([1450, 1450, 1400]);
    expect(fib.setPathMtu('192.0.2.1', 1280)).toBe(2);
    expect([mtu('10.1.0.0'), mtu('10.2.0.0'), mtu('10.3.0.0')]).toEqual([1280, 1280, 1400]);
    expect(fib.setPathMtu(Address.parse('192.0.2.77'), 1280)).toBe(0);
    fib.set('10.4.0.0/16', host(1, { port: 10 }));
    expect(mtu('10.4.0.0')).toBe(1280);
    expect(fib.nextHopRow(index('10.4.0.0'))?.pathMtu).toBe(1280);
  });

  it('is forgotten with the last route to the address', () => {
    fib.set('10.1.0.0/16', host(1));
    fib.setPathMtu('192.0.2.1', 1280);
    fib.delete('10.1.0.0/16');
    fib.set('10.1.0.0/16', host(1));
    expect(mtu('10.1.0.0')).toBe(1500);
  });

  it('that was found out outlives the same route being set again', () => {
    fib.set('10.1.0.0/16', host(1, { mtu: 1400 }));
    fib.setPathMtu('192.0.2.1', 1280);
    fib.set('10.1.0.0/16', host(1, { mtu: 1400 }));
    expect(mtu('10.1.0.0')).toBe(1280);
    fib.set('10.1.0.0/16', host(1, { mtu: 1399 }));
    expect(mtu('10.1.0.0')).toBe(1399);
  });

  it.each([0, 67, 65536, 1499.5, Number.NaN])('of %d is refused', (value) => {
    fib.set('10.1.0.0/16', host(1));
    expect(refusal(() => fib.setPathMtu('192.0.2.1', value)).message).toContain(`path MTU ${value} must be`);
    expect(refusal(() => new Fib(memory, { underlayMtu: value })).code).toBe('INVALID_ARGUMENT');
    expect(mtu('10.1.0.0')).toBe(1500);
  });
});

describe('senders', () => {
  it('are the next hop address and the extra ones of every route to that host', () => {
    fib.set('10.1.0.0/16', host(1, { senders: ['198.51.100.1', '2001:db8::1'] }));
    fib.set('10.2.0.0/16', host(1, { senders: ['198.51.100.1', '198.51.100.2'] }));
    fib.set('10.3.0.0/16', { address: '2001:db8::3' });
    const id = reader.hostId[index('10.1.0.0')]!;
    expect(id).toBeGreaterThan(0);
    expect(['192.0.2.1', '198.51.100.1', '198.51.100.2', '2001:db8::1'].map(sender)).toEqual([id, id, id, id]);
    expect(sender('2001:db8::3')).toBe(reader.hostId[index('10.3.0.0')]);
    expect(['192.0.2.2', '198.51.100.3', '2001:db8::2', '10.1.0.0'].map(sender)).toEqual([0, 0, 0, 0]);
    fib.delete('10.1.0.0/16');
    expect(['192.0.2.1', '198.51.100.1', '198.51.100.2', '2001:db8::1'].map(sender)).toEqual([id, id, id, 0]);
    fib.delete('10.2.0.0/16');
    expect(['192.0.2.1', '198.51.100.1', '198.51.100.2'].map(sender)).toEqual([0, 0, 0]);
  });

  it('keep their host id while routes to the host change', () => {
    fib.set('10.1.0.0/16', host(1));
    const id = sender('192.0.2.1');
    fib.set('10.1.0.0/16', host(1, { port: 9, senders: ['198.51.100.1'] }));
    expect([sender('192.0.2.1'), sender('198.51.100.1')]).toEqual([id, id]);
  });

  it('that two hosts claim are its owner’s, else the older claim’s, and pass on', () => {
    const shared = '198.51.100.9';
    fib.set('10.1.0.0/16', host(1, { senders: [shared] }));
    fib.set('10.2.0.0/16', host(2, { senders: [shared] }));
    const [one, two] = [sender('192.0.2.1'), sender('192.0.2.2')];
    expect(sender(shared)).toBe(one);
    fib.set('10.3.0.0/16', { address: shared });
    const three = reader.hostId[index('10.3.0.0')]!;
    expect(new Set([one, two, three]).size).toBe(3);
    expect(sender(shared)).toBe(three);
    fib.delete('10.1.0.0/16');
    expect(sender(shared)).toBe(three);
    fib.delete('10.3.0.0/16');
    expect(sender(shared)).toBe(two);
    fib.delete('10.2.0.0/16');
    expect(sender(shared)).toBe(0);
    expect(fib.memoryUsage()).toMatchObject({ hosts: 0, senders: 0 });
  });

  it('do not give a host id to another host while a reader may compare it', () => {
    fib.set('10.1.0.0/16', host(1));
    reader.enter();
    const id = sender('192.0.2.1');
    fib.delete('10.1.0.0/16');
    for (let n = 2; n < 15; n++) {
      fib.set('10.1.0.0/16', host(n));
      expect(sender(`192.0.2.${n}`)).not.toBe(id);
    }
    reader.leave();
    fib.reclaim();
    fib.set('10.2.0.0/16', host(99));
    expect(sender('192.0.2.99')).toBeLessThan(15);
  });
});

describe('limits', () => {
  const state = (): string =>
    JSON.stringify([[...fib.entries()], fib.nextHopRows(), ['10.0.0.1', '10.9.0.1'].map(index), fib.size]);

  it('of routes', () => {
    open({ maxRoutes: 3 });
    for (let i = 0; i < 3; i++) fib.set(`10.${i}.0.0/16`, host(1 + i));
    const before = state();
    const error = refusal(() => fib.set('10.9.0.0/16', host(1)));
    expect(error.code).toBe('CAPACITY');
    expect(error.message).toBe('4 routes do not fit into a table of 3: open it with a larger maxRoutes');
    const many = ['10.5.0.0/16', '10.6.0.0/16', '10.7.0.0/16', '10.9.0.0/16'].map((p) => [p, host(9)] as const);
    expect(refusal(() => fib.replace(many)).code).toBe('CAPACITY');
    expect(state()).toBe(before);
    fib.set('10.0.0.0/16', host(3));
    fib.replace(many.slice(0, 3));
    expect(fib.size).toBe(3);
    fib.setLocal(['10.8.0.0/16']);
    expect(index('10.8.0.0')).toBe(LOCAL);
  });

  it('of next hops: all of them may be exchanged at once, none may be added', () => {
    open({ maxNextHops: 2 });
    fib.set('10.0.0.0/16', host(1));
    fib.set('10.1.0.0/16', host(2));
    fib.set('10.2.0.0/16', host(2));
    const before = state();
    const error = refusal(() => fib.set('10.9.0.0/16', host(3)));
    expect(error.code).toBe('CAPACITY');
    expect(error.message).toBe('3 next hops do not fit into a table of 2: open it with a larger maxNextHops');
    expect(refusal(() => fib.set('10.1.0.0/16', host(3))).code).toBe('CAPACITY');
    expect(refusal(() => fib.replace([1, 2, 3].map((n) => [`10.${n}.0.0/16`, host(n)] as const))).code).toBe(
      'CAPACITY',
    );
    expect(state()).toBe(before);
    fib.set('10.0.0.0/16', host(3));
    fib.replace([
      ['10.0.0.0/16', host(4)],
      ['10.1.0.0/16', host(5)],
    ]);
    expect(fib.nextHopRows().map((row) => row.address.toString())).toEqual(['192.0.2.4', '192.0.2.5']);
  });

  it('of rows when a reader holds all freed ones back: refused, not overwritten', () => {
    open({ maxNextHops: 1 });
    const slow = new FibReader(memory, 1);
    fib.set('10.0.0.0/16', host(1));
    slow.enter();
    const churn = (): void => {
      for (let n = 1; n < 200; n++) fib.set('10.0.0.0/16', host(n));
    };
    const error = refusal(churn);
    expect(error.code).toBe('CAPACITY');
    expect(error.message).toMatch(/^no room for next hop 192\.0\.2\.\d+: all rows are in use or wait for readers/);
    expect(fib.lookup('10.0.0.1')).toBeDefined();
    fib.clearReader(1);
    churn();
    expect(fib.lookup('10.0.0.1')?.address.toString()).toBe('192.0.2.199');
  });

  it('of memory: a replace that runs out half-way is undone', () => {
    const small = { ...createFibMemory({ maxRoutes: 100, maxNextHops: 20, readers: 2 }), wordCount: HEAP_START + 512 };
    memory = small;
    fib = new Fib(small);
    reader = new FibReader(small, 0);
    for (let i = 0; i < 8; i++) fib.set(`10.${i}.7.0/24`, host(1 + (i % 3)));
    fib.setPathMtu('192.0.2.1', 1300);
    fib.setLocal(['10.3.7.0/24']);
    const before = state();
    const roots = wordsView(small).slice(0, SENDERS4_ROOT);
    const wanted = Array.from({ length: 60 }, (_, i) => [`10.${i}.7.0/24`, host(1 + (i % 5), { mtu: 1400 })] as const);
    const error = refusal(() => fib.replace(wanted));
    expect(error.code).toBe('CAPACITY');
    expect(error.message).toMatch(/^the forwarding table is full: \d+ of 512 words in use; open it with a larger/);
    expect(state()).toBe(before);
    for (let i = 0; i < 60; i++) expect(index(`10.${i}.7.1`) === NO_ROUTE).toBe(i >= 8);
    expect(index('10.3.7.1')).toBe(LOCAL);
    // The routes' roots point where they pointed: nothing that was there before was rebuilt either.
    expect(wordsView(small).slice(0, SENDERS4_ROOT)).toEqual(roots);
    fib.replace(wanted.slice(0, 6));
    expect(fib.size).toBe(6);
  });
});
