/** Shapes: how many words sets of prefixes cost, and that they come back. Results are tested in test/property/fib. */
import { beforeEach, describe, expect, it } from 'vitest';
import { WordHeap } from '../../../src/fib/heap.js';
import { HEAP_START, ROUTES4_ROOT, ROUTES6_ROOT, createFibMemory, wordsView } from '../../../src/fib/layout.js';
import { FibReader } from '../../../src/fib/lookup.js';
import { Reclaimer } from '../../../src/fib/reclaim.js';
import { SharedTrie, TrieSpace } from '../../../src/fib/trie.js';
import { Address, Prefix } from '../../../src/net/prefix.js';

let heap: WordHeap;
let reclaimer: Reclaimer;
let reader: FibReader;
let tries: Record<4 | 6, SharedTrie>;

beforeEach(() => {
  const memory = createFibMemory({ maxRoutes: 100_000, maxNextHops: 10, readers: 1 });
  const words = wordsView(memory);
  heap = new WordHeap(words, HEAP_START, words.length);
  reclaimer = new Reclaimer(memory);
  reader = new FibReader(memory, 0);
  const space = new TrieSpace(words, heap, reclaimer);
  tries = { 4: new SharedTrie(space, ROUTES4_ROOT, 1), 6: new SharedTrie(space, ROUTES6_ROOT, 4) };
});

const keyOf = (address: Address): Int32Array =>
  Int32Array.from({ length: address.bytes.length / 4 }, (_, i) => address.word(i));

function set(text: string, value = 5): void {
  const { address, length, family } = Prefix.parse(text);
  tries[family].set(keyOf(address), length, value);
}

function remove(text: string): void {
  const { address, length, family } = Prefix.parse(text);
  expect(tries[family].delete(keyOf(address), length)).toBe(true);
}

function find(text: string): number {
  const [a, b, c, d] = keyOf(Address.parse(text));
  return b === undefined ? reader.lookup4(a!) : reader.lookup6(a!, b, c!, d!);
}

/** Words in use once everything replaced has been taken back. */
function words(): number {
  expect(reclaimer.collect()).toBe(true);
  return heap.usedWords;
}

describe('what prefixes cost', () => {
  it('nothing up to /16', () => {
    for (const text of ['0.0.0.0/0', '10.0.0.0/8', '10.1.0.0/16', '::/0', 'fd00::/8', 'fd00::/16']) set(text);
    expect(words()).toBe(0);
  });

  it('4 words for a /26 inside a /24, 256 for a full /16 of /24s', () => {
    for (let i = 0; i < 256; i++) set(`10.1.${i}.0/24`, 10 + i);
    expect(words()).toBe(256);
    set('10.1.7.64/26', 3);
    expect(words()).toBe(256 + 4);
    expect([find('10.1.7.63'), find('10.1.7.64'), find('10.1.7.127'), find('10.1.7.128')]).toEqual([17, 3, 3, 17]);
  });

  it('8 words for a lone IPv6 prefix, however long', () => {
    for (const [text, inside] of [
      ['fd00:1:2:3::/64', 'fd00:1:2:3::9'],
      ['fd01::1/128', 'fd01::1'],
    ] as const) {
      set(text, 7);
      expect(words()).toBe(8);
      expect(find(inside)).toBe(7);
      remove(text);
      expect(words()).toBe(0);
    }
  });

  it('one skip and two full levels for a /48 of /64s', () => {
    for (let i = 0; i < 65_536; i++) set(`fd00:1:2:${i.toString(16)}::/64`, 2 + i);
    expect(words()).toBe(8 + 256 + 65_536);
    expect(find('fd00:1:2:abcd::1')).toBe(2 + 0xabcd);
    expect(find('fd00:1:3:abcd::1')).toBe(0);
  });

  it('is bounded for prefixes that lie as badly as possible', () => {
    // Alone in a /16 each, and each of another length.
    for (let i = 0; i < 4096; i++) set(`10.${i & 255}.128.0/${17 + (i >>> 8)}`);
    expect(words()).toBeLessThan(4096 * 64);
    for (let i = 0; i < 4096; i++) set(`fd00:${i.toString(16)}:8000::/${33 + (i % 96)}`);
    expect(words()).toBeLessThan(2 * 4096 * 64);
  });
});

describe('growing and shrinking', () => {
  it('goes back through the same shapes, down to nothing', () => {
    const texts = Array.from({ length: 32 }, (_, i) => `10.1.${i * 8}.0/${24 + (i % 4)}`);
    const costs = [words()];
    for (const text of texts) {
      set(text);
      costs.push(words());
    }
    expect(new Set(costs).size).toBeGreaterThan(5);
    for (const text of texts.reverse()) {
      expect(words()).toBe(costs.pop());
      remove(text);
    }
    expect(words()).toBe(0);
  });

  it('widens a chunk of many prefixes when longer ones arrive', () => {
    for (let i = 0; i < 64; i++) set(`10.1.${4 * i}.0/22`, 10 + i);
    expect(words()).toBe(64);
    for (let i = 0; i < 256; i++) set(`10.1.${i}.0/24`, 300 + i);
    expect(words()).toBe(256);
    for (let i = 0; i < 256; i++) remove(`10.1.${i}.0/24`);
    expect([find('10.1.7.1'), find('10.1.8.1')]).toEqual([11, 12]);
    for (let i = 0; i < 64; i++) remove(`10.1.${4 * i}.0/22`);
    expect(words()).toBe(0);
  });

  it('does not rebuild a large part again and again when one prefix comes and goes', () => {
    for (let i = 0; i < 20_000; i++) set(`fd00:1:2:${i.toString(16)}::/64`, 2);
    // A prefix that parts from all others inside the skip: the first time everything beneath is rebuilt.
    set('fd00:8000::/32', 3);
    const once = words();
    for (let i = 0; i < 3; i++) {
      remove('fd00:8000::/32');
      set('fd00:8000::/32', 3);
      // What was replaced would still be in use until collected.
      expect(heap.usedWords - once).toBeLessThan(1000);
      expect(words()).toBe(once);
    }
    for (let i = 0; i < 20_000; i++) remove(`fd00:1:2:${i.toString(16)}::/64`);
    expect(words()).toBe(8);
    expect(find('fd00:8000::1')).toBe(3);
  });

  it('splits a skip for a shorter prefix, even one whose further bits equal the pattern', () => {
    for (let i = 0; i < 100; i++) set(`fd00:1::${i.toString(16)}/128`, 7);
    for (const length of [40, 33, 17, 64, 96]) {
      set(`fd00:1::/${length}`, length);
      expect(find('fd00:1::5')).toBe(7);
    }
    expect(find('fd00:1::ff')).toBe(96);
    expect(find('fd00:1::1:0:0')).toBe(64);
    expect(find('fd00:1:0:1::')).toBe(40);
    expect(find('fd00:1:8000::')).toBe(17);
    expect(find('fd00:1:4000::')).toBe(33);
    expect(find('fd00:8000::')).toBe(0);
  });
});

describe('a full heap', () => {
  it('names the figures and the reader that holds memory back', () => {
    const memory = { ...createFibMemory({ maxRoutes: 10, maxNextHops: 10, readers: 2 }), wordCount: HEAP_START + 512 };
    const view = wordsView(memory);
    const own = new Reclaimer(memory);
    const trie = new SharedTrie(new TrieSpace(view, new WordHeap(view, HEAP_START, view.length), own), ROUTES4_ROOT, 1);
    const busy = new FibReader(memory, 1);
    busy.enter();
    const fill = (): void => {
      for (let i = 0; i < 256; i++) trie.set(Int32Array.of(0x0a010000 + i * 256), 24, 9);
    };
    expect(fill).toThrow(
      expect.objectContaining({
        code: 'CAPACITY',
        message: expect.stringMatching(
          /^the forwarding table is full: \d+ of 512 words in use, \d+ of them waiting for reader 1 to move on; /,
        ),
      }),
    );
    busy.leave();
    expect(fill).not.toThrow();
  });
});
