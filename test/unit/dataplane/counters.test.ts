import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import {
  COUNTERS,
  COUNTER_COUNT,
  COUNTER_NAMES,
  KERNEL_DROPS,
  counterIndex,
  namedCounters,
} from '../../../src/dataplane/counters.js';
import * as batch from '../../../src/io/batch.js';
import { root } from '../../support/process.js';

const header = readFileSync(`${root}/native/layout.h`, 'utf8');

/** `#define PW_NAME value` of layout.h; values may refer to earlier ones. */
function defines(): Map<string, number> {
  const found = new Map<string, number>();
  for (const [, name, text] of header.matchAll(/^#define PW_([A-Z0-9_]+) +([^/\n]+)/gm)) {
    const expression = text!.replace(/PW_([A-Z0-9_]+)/g, (_, other: string) => String(found.get(other)));
    if (!/^[\d\s()+*xa-f]+$/i.test(expression)) continue;
    const terms = expression.replace(/[()]/g, '').split('+');
    const value = terms.reduce(
      (sum, term) => sum + term.split('*').reduce((product, one) => product * Number(one), 1),
      0,
    );
    found.set(name!, value);
  }
  return found;
}

describe('the counters', () => {
  it('are those of native/layout.h, in its order', () => {
    const native = Array.from(header.matchAll(/^ +X\((\w+)\)/gm), ([, name]) => name);
    expect(native).toEqual(COUNTER_NAMES);
    expect(COUNTER_COUNT).toBe(native.length);
  });

  it('have one index and one meaning each', () => {
    for (const [i, name] of COUNTER_NAMES.entries()) expect(counterIndex(name)).toBe(i);
    const meanings = Object.values({ ...COUNTERS, ...KERNEL_DROPS });
    expect(new Set(meanings).size).toBe(meanings.length);
    for (const name of Object.keys(KERNEL_DROPS)) expect(COUNTER_NAMES).not.toContain(name);
  });

  it('are shown by name', () => {
    const row = Float64Array.from(COUNTER_NAMES, (_, i) => i + 0.5);
    const named = namedCounters(row);
    expect(Object.keys(named)).toEqual(COUNTER_NAMES);
    expect(Object.values(named)).toEqual([...row]);
    expect(new Set(Object.values(namedCounters(new Float64Array(0))))).toEqual(new Set([0]));
  });
});

describe('the tables of a batch', () => {
  const native = defines();

  it('are read completely', () => {
    expect(native.get('MAX_INGRESS')).toBe(1024);
    expect(native.get('INGRESS_BASE')).toBe(16 + 256 * 8);
    expect(native.get('V_FRAGMENT')).toBe(0x10000000);
  });

  it('have the words of native/layout.h', () => {
    const compared: string[] = [];
    for (const [name, value] of Object.entries(batch)) {
      if (typeof value !== 'number' || !native.has(name)) continue;
      expect([name, value]).toEqual([name, native.get(name)]);
      compared.push(name);
    }
    // Slots are the engine's own business (native/engine.h).
    const numbers = Object.entries(batch).filter(([, value]) => typeof value === 'number');
    const missing = numbers.map(([name]) => name).filter((name) => !compared.includes(name));
    expect(missing.sort()).toEqual(['REPLY_SLOT', 'TUN_SLOT', 'UDP_SLOT']);
  });

  it('lie apart from each other, each view as long as it says', () => {
    const memory = batch.createBatchMemory(COUNTER_COUNT, 100);
    const views = batch.openBatch(memory);
    const regions = [views.meta, views.counters, views.peers, views.tun, views.udp, views.reply];
    expect(views.counters.length).toBe(COUNTER_COUNT);
    expect(views.peers.length).toBe(100 * batch.PEER_WORDS);
    expect(views.reply.length).toBe(batch.MAX_REPLIES * batch.REPLY_SLOT);
    expect(views.udp.length % batch.UDP_SLOT).toBe(0);
    const ranges = regions.map((view) => [view.byteOffset, view.byteOffset + view.byteLength] as const);
    ranges.sort(([a], [b]) => a - b);
    for (const [i, [from]] of ranges.entries()) if (i > 0) expect(from).toBeGreaterThanOrEqual(ranges[i - 1]![1]);
    expect(ranges.at(-1)![1]).toBeLessThanOrEqual(memory.buffer.byteLength);
    // The data views are windows on the same bytes.
    views.tun[5] = 77;
    views.udp[6] = 78;
    expect([views.tunView.getUint8(5), views.udpView.getUint8(6)]).toEqual([77, 78]);
    expect([views.tunView.byteLength, views.udpView.byteLength]).toEqual([views.tun.length, views.udp.length]);
  });
});
