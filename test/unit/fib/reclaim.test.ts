import { describe, expect, it } from 'vitest';
import { EPOCH_WORD, controlView, createFibMemory, readerWord } from '../../../src/fib/layout.js';
import { FibReader } from '../../../src/fib/lookup.js';
import { Reclaimer } from '../../../src/fib/reclaim.js';

function make(readers: number) {
  const memory = createFibMemory({ maxRoutes: 1, maxNextHops: 1, readers });
  const reclaimer = new Reclaimer(memory);
  const freed: number[] = [];
  const kind = reclaimer.addOwner((item) => freed.push(item));
  const reader = (i: number): FibReader => new FibReader(memory, i);
  return { control: controlView(memory), reclaimer, kind, freed, reader };
}

describe('Reclaimer', () => {
  it('hands items back at once while all readers are quiescent', () => {
    const { reclaimer, kind, freed } = make(3);
    expect(reclaimer.collect()).toBe(true);
    reclaimer.retire(kind, 7);
    reclaimer.retire(kind, 8);
    expect(freed).toEqual([]);
    expect(reclaimer.collect()).toBe(true);
    expect(freed).toEqual([7, 8]);
  });

  it('waits for every reader that entered before the item was retired, and for no other', () => {
    const { reclaimer, kind, freed, reader } = make(3);
    const [early, late] = [reader(0), reader(2)];
    early.enter();
    reclaimer.retire(kind, 1);
    expect(reclaimer.collect()).toBe(false);
    expect(reclaimer.blockingReader()).toBe(0);
    late.enter(); // in the new epoch: it cannot have met item 1
    expect(reclaimer.collect()).toBe(false);
    early.leave();
    expect(reclaimer.blockingReader()).toBeUndefined();
    expect(reclaimer.collect()).toBe(true);
    expect(freed).toEqual([1]);
  });

  it('takes entering again as leaving', () => {
    const { reclaimer, kind, freed, reader } = make(1);
    const busy = reader(0);
    busy.enter();
    reclaimer.retire(kind, 1);
    expect(reclaimer.collect()).toBe(false);
    busy.enter();
    expect(reclaimer.collect()).toBe(true);
    expect(freed).toEqual([1]);
  });

  it('keeps what is retired while an older bag waits for a later epoch', () => {
    const { reclaimer, kind, freed, reader } = make(2);
    const [first, second] = [reader(0), reader(1)];
    first.enter();
    reclaimer.retire(kind, 1);
    expect(reclaimer.collect()).toBe(false);
    second.enter(); // may see item 2, which is unlinked after this
    reclaimer.retire(kind, 2);
    first.leave();
    expect(reclaimer.collect()).toBe(false);
    expect(freed).toEqual([1]);
    expect(reclaimer.blockingReader()).toBe(1);
    second.leave();
    expect(reclaimer.collect()).toBe(true);
    expect(freed).toEqual([1, 2]);
  });

  it('obeys a word that native code or the main thread cleared', () => {
    const { control, reclaimer, kind, freed, reader } = make(2);
    reader(1).enter();
    reclaimer.retire(kind, 1);
    expect(reclaimer.collect()).toBe(false);
    Atomics.store(control, readerWord(1), 0);
    expect(reclaimer.collect()).toBe(true);
    expect(freed).toEqual([1]);
  });

  it('wraps its epoch without ever using 0', () => {
    const { control, reclaimer, kind, reader } = make(1);
    Atomics.store(control, EPOCH_WORD, -1);
    reclaimer.retire(kind, 1);
    reclaimer.collect();
    expect(Atomics.load(control, EPOCH_WORD)).toBe(1);
    Atomics.store(control, EPOCH_WORD, 0x7fffffff);
    reader(0).enter();
    reclaimer.retire(kind, 2);
    expect(reclaimer.collect()).toBe(false);
    expect(Atomics.load(control, EPOCH_WORD)).toBe(-0x80000000);
  });

  it('holds any number of items in order', () => {
    const { reclaimer, kind, freed, reader } = make(1);
    const busy = reader(0);
    busy.enter();
    const items = Array.from({ length: 100_000 }, (_, i) => i);
    for (const item of items) reclaimer.retire(kind, item);
    expect(reclaimer.collect()).toBe(false);
    busy.leave();
    expect(reclaimer.collect()).toBe(true);
    expect(freed).toEqual(items);
  });
});
