/** Seeded randomness for simulations: the seed is part of the test's name, and `PODWIRE_SEED` repeats it. */
export const seed: number = Number(process.env['PODWIRE_SEED'] ?? (Date.now() ^ (process.pid << 8)) >>> 0);

/** A small good generator (mulberry32): uniform in [0, 1). */
export function generator(from: number): () => number {
  let state = from >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

export function pick<T>(random: () => number, from: readonly T[]): T {
  if (from.length === 0) throw new Error('nothing to pick from');
  return from[Math.floor(random() * from.length)] as T;
}
