/** Bytes that show loss, reordering and corruption: a xorshift sequence, different for each seed. */

/** Fills `buffer` with the sequence of `seed` and returns it. */
export function fillPattern<T extends Uint8Array>(buffer: T, seed: number): T {
  let state = (seed * 0x9e3779b1 + 0x7f4a7c15) | 0 || 1;
  for (let i = 0; i < buffer.length; i += 1) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    buffer[i] = state & 0xff;
  }
  return buffer;
}

/** How many leading bytes of `got` are those of `expected`. */
export function intactLength(got: Uint8Array, expected: Uint8Array): number {
  const length = Math.min(got.length, expected.length);
  for (let i = 0; i < length; i += 1) if (got[i] !== expected[i]) return i;
  return length;
}
