import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  searchDown,
  searchUp,
  testSize,
  type ProbeOutcome,
  type ProbedPath,
} from '../../../src/dataplane/pmtu-search.js';

const FLOOR = 576;

interface Recorded extends ProbedPath {
  hint: number;
  readonly sizes: number[];
}

/** A path whose answers are decided by a function of size and turn. */
function path(answer: (size: number, turn: number) => ProbeOutcome, hint = 0, retries = 3): Recorded {
  const sizes: number[] = [];
  return {
    floor: FLOOR,
    retries,
    hint,
    sizes,
    probe: (size) => Promise.resolve(answer(size, sizes.push(size) - 1)),
  };
}

const carries =
  (mtu: number) =>
  (size: number): ProbeOutcome =>
    size <= mtu ? 'answered' : 'lost';

/** A path whose probes end as scripted, one letter each: v answered, x lost, f failed, t too big. */
function scripted(script: string, retries = 3): Recorded {
  const outcomes: Record<string, ProbeOutcome> = { v: 'answered', x: 'lost', f: 'failed', t: 'too-big' };
  return path(
    (_, turn) => {
      const outcome = outcomes[script[turn] ?? ''];
      if (outcome === undefined) throw new Error(`probe ${turn} was not expected`);
      return outcome;
    },
    0,
    retries,
  );
}

describe('testSize', () => {
  it.each([
    // Probes of the size and of the floor alternate while the size is lost.
    ['v', 'good', 3],
    ['xvv', 'good', 3],
    ['xvxvxv', 'bad', 3],
    ['xv', 'bad', 1],
    ['xxv', 'good', 3],
    ['xxxxxx', 'unknown', 3],
    ['xx', 'unknown', 1],
    ['xvxxxxxvxv', 'bad', 3],
    ['xvxxxxxxxxxx', 'unknown', 3],
    ['xvxxxxxxxxv', 'good', 3],
    ['f', 'unknown', 3],
    ['xvf', 'unknown', 3],
    ['xf', 'unknown', 3],
    ['xt', 'unknown', 3],
    ['t', 'bad', 3],
    ['xvt', 'bad', 3],
  ] as const)('outcomes %s mean %s (%i retries)', async (script, verdict, retries) => {
    const probed = scripted(script, retries);
    expect(await testSize(probed, 1400)).toBe(verdict);
    expect(probed.sizes).toHaveLength(script.length);
  });

  it('never finds the floor itself bad', async () => {
    for (const outcome of ['lost', 'too-big', 'failed'] as const) {
      const probed = path(() => outcome);
      expect(await testSize(probed, FLOOR)).toBe('unknown');
      expect(probed.sizes.length).toBeLessThanOrEqual(3);
    }
  });
});

const mtu = fc.integer({ min: FLOOR, max: 9000 });

describe('searches', () => {
  it('find exactly what a path carries, with any hint, in a logarithmic number of sizes', async () => {
    await fc.assert(
      fc.asyncProperty(mtu, mtu, mtu, async (a, b, hint) => {
        const [carried, bad] = a < b ? [a, b] : [b, a + 1];
        const down = path(carries(carried), hint);
        expect(await searchDown(down, bad)).toBe(carried);
        const used = Math.max(FLOOR, carried - (hint % 50));
        const up = path(carries(carried), hint);
        expect(await searchUp(up, used, bad)).toBe(carried);
        expect(await searchUp(path(carries(bad), hint), used, bad)).toBe(bad);
        expect(new Set(down.sizes).size).toBeLessThanOrEqual(2 + 2 + Math.ceil(Math.log2(9000)) + 1);
        expect(Math.max(...up.sizes, 0)).toBeLessThanOrEqual(bad);
      }),
    );
  });

  it('look at two sizes only when the hint is right', async () => {
    const probed = path(carries(1400), 1400);
    await searchDown(probed, 1500);
    expect(new Set(probed.sizes)).toEqual(new Set([FLOOR, 1400, 1401]));
  });

  it('upwards cost one size while nothing has changed, and no second look at the last byte', async () => {
    const same = path(carries(1400));
    expect(await searchUp(same, 1400, 1500)).toBe(1400);
    expect(new Set(same.sizes)).toEqual(new Set([1401, FLOOR]));
    const last = path(carries(1500));
    expect(await searchUp(last, 1499, 1500)).toBe(1500);
    expect(last.sizes).toEqual([1500]);
    const none = path(carries(1500));
    expect(await searchUp(none, 1500, 1500)).toBe(1500);
    expect(none.sizes).toEqual([]);
  });

  it('go on above a size that was refused by mistake, up to the one that was refused first', async () => {
    // The path carries 1500, but everything above 1200 is lost until the boundary is looked at again.
    const probed = path((size) =>
      size <= 1200 || probed.sizes.filter((other) => other === 1201).length > 3 ? 'answered' : 'lost',
    );
    expect(await searchDown(probed, 1500)).toBe(1500);
  });

  it('say nothing when the peer falls silent, or when even the small size is refused', async () => {
    for (let silentFrom = 0; silentFrom < 40; silentFrom++) {
      const probed = path((size, turn) => (turn >= silentFrom ? 'lost' : carries(1400)(size)));
      const found = await searchDown(probed, 1500);
      expect(found === undefined || (found === 1400 && probed.sizes.length <= silentFrom)).toBe(true);
    }
    expect(
      await searchDown(
        path(() => 'lost'),
        1500,
      ),
    ).toBeUndefined();
    expect(
      await searchDown(
        path((size) => (size > FLOOR ? 'too-big' : 'lost')),
        1500,
      ),
    ).toBeUndefined();
    expect(
      await searchUp(
        path(() => 'lost'),
        1400,
        1500,
      ),
    ).toBeUndefined();
  });

  it('end under any behaviour of the path, with a size that was answered at least once', async () => {
    const outcome = fc.constantFrom<ProbeOutcome[]>(
      'answered',
      'answered',
      'answered',
      'lost',
      'lost',
      'too-big',
      'failed',
    );
    await fc.assert(
      fc.asyncProperty(fc.infiniteStream(outcome), fc.nat(9000), async (stream, hint) => {
        const answered = new Set<number>();
        const probed = path((size) => {
          const next = stream.next().value as ProbeOutcome;
          if (next === 'answered') answered.add(size);
          return next;
        }, hint);
        const down = await searchDown(probed, 1500);
        expect(down === undefined || answered.has(down)).toBe(true);
        expect(probed.sizes.every((size) => size >= FLOOR && size <= 1500)).toBe(true);
        expect(probed.sizes.length).toBeLessThan(3 * 13 * 12 + 12);
      }),
    );
  });
});
