import { describe, expect, it } from 'vitest';
import * as policy from '../../../src/dataplane/policy.js';
import { META_TOTAL_WORDS, MESSAGE_BASE, M_FAMILY, M_WORD0, ROW_WORDS } from '../../../src/io/batch.js';
import { TOKEN_BUCKET_WORDS } from '../../../src/net/icmp.js';

const { NOTE_SPOOFED, NOTE_UNKNOWN_SENDER, POLICY_WORDS, readNote, takeNote } = policy;

function words(): Int32Array {
  return new Int32Array(new SharedArrayBuffer(POLICY_WORDS * 4));
}

function message(family: 4 | 6, address: readonly number[]): { meta: Int32Array; row: number } {
  const meta = new Int32Array(META_TOTAL_WORDS).fill(-1);
  const row = MESSAGE_BASE + 3 * ROW_WORDS;
  meta[row + M_FAMILY] = family;
  for (const [i, word] of address.entries()) meta[row + M_WORD0 + i] = word;
  return { meta, row };
}

describe('notes about offenders', () => {
  it('are absent until one is taken', () => {
    expect(readNote(words(), NOTE_UNKNOWN_SENDER)).toBeUndefined();
  });

  it('name the latest IPv4 sender and count all', () => {
    const shared = words();
    for (const address of [0x0a000001, 0xc0000207 | 0]) {
      const { meta, row } = message(4, [address]);
      takeNote(shared, NOTE_UNKNOWN_SENDER, meta, row, 3);
    }
    expect(readNote(shared, NOTE_UNKNOWN_SENDER)).toEqual({ count: 6, bytes: Uint8Array.of(192, 0, 2, 7) });
    expect(readNote(shared, NOTE_SPOOFED)).toBeUndefined();
  });

  it('name an IPv6 sender', () => {
    const shared = words();
    const { meta, row } = message(6, [0x20010db8, 0, 0x80000000 | 0, 1]);
    takeNote(shared, NOTE_SPOOFED, meta, row, 1);
    expect(readNote(shared, NOTE_SPOOFED)).toEqual({
      count: 1,
      bytes: Uint8Array.of(0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 1),
    });
  });

  it('count beyond 2^31', () => {
    const shared = words();
    shared[NOTE_SPOOFED] = 0x7fffffff;
    const { meta, row } = message(4, [1]);
    takeNote(shared, NOTE_SPOOFED, meta, row, 1);
    expect(readNote(shared, NOTE_SPOOFED)?.count).toBe(0x80000000);
  });

  it('do not touch settings, token buckets or each other', () => {
    const noteWords = 6;
    const regions = [
      [policy.POLICY_SOURCE_CHECK, 1],
      [policy.POLICY_OVERHEAD, 1],
      [policy.POLICY_PROBE_NONCE, 1],
      [policy.TOKENS_UNREACHABLE, TOKEN_BUCKET_WORDS],
      [policy.TOKENS_TOO_BIG, TOKEN_BUCKET_WORDS],
      [NOTE_UNKNOWN_SENDER, noteWords],
      [NOTE_SPOOFED, noteWords],
    ] as const;
    const used = regions.flatMap(([from, count]) => Array.from({ length: count }, (_, i) => from + i));
    expect(new Set(used).size).toBe(used.length);
    expect(Math.max(...used)).toBeLessThan(POLICY_WORDS);
    const shared = words();
    const { meta, row } = message(6, [-1, -1, -1, -1]);
    takeNote(shared, NOTE_UNKNOWN_SENDER, meta, row, 1);
    const changed = [...shared.keys()].filter((i) => shared[i] !== 0);
    expect(changed).toEqual(Array.from({ length: noteWords }, (_, i) => NOTE_UNKNOWN_SENDER + i));
  });
});

describe('the source check', () => {
  it('is stored as its place in the list', () => {
    expect(policy.SOURCE_CHECKS[policy.SOURCE_CHECK_OFF]).toBe('off');
    expect(policy.SOURCE_CHECKS[policy.SOURCE_CHECK_LEASE]).toBe('lease');
    expect(policy.SOURCE_CHECKS[policy.SOURCE_CHECK_STRICT]).toBe('strict');
  });
});
