/**
 * Words that the main thread and all workers of a data plane share besides the FIB: settings that the main thread
 * writes, token buckets, and notes in which a worker leaves the latest offender for the operator to see.
 */

export const POLICY_SOURCE_CHECK = 0;
/** Bytes between inner packet and outer packet. */
export const POLICY_OVERHEAD = 1;
/** The nonce of our peer probes; 0 is never one. */
export const POLICY_PROBE_NONCE = 6;
/** Token buckets (net/icmp.ts), two words each. */
export const TOKENS_UNREACHABLE = 2;
export const TOKENS_TOO_BIG = 4;
/** Notes: a count, then family and four address words of the latest outer sender. */
export const NOTE_UNKNOWN_SENDER = 8;
export const NOTE_SPOOFED = 16;
export const POLICY_WORDS = 24;

const NOTE_COUNT = 0;
const NOTE_ADDRESS = 1;
const NOTE_ADDRESS_WORDS = 5;

export type SourceCheck = 'off' | 'lease' | 'strict';
export const SOURCE_CHECK_OFF = 0;
export const SOURCE_CHECK_LEASE = 1;
export const SOURCE_CHECK_STRICT = 2;
export const SOURCE_CHECKS: readonly SourceCheck[] = ['off', 'lease', 'strict'];

/** Records a sender (family and words of a message row). Workers may overwrite each other: any of them is as good. */
export function takeNote(
  policy: Int32Array,
  note: number,
  meta: Int32Array,
  messageRow: number,
  packets: number,
): void {
  for (let i = 0; i < NOTE_ADDRESS_WORDS; i++) policy[note + NOTE_ADDRESS + i] = meta[messageRow + i]!;
  Atomics.add(policy, note + NOTE_COUNT, packets);
}

/** The latest sender that was noted and how many there were (modulo 2^32), or undefined when none was. */
export function readNote(policy: Int32Array, note: number): { count: number; bytes: Uint8Array } | undefined {
  const count = Atomics.load(policy, note + NOTE_COUNT) >>> 0;
  if (count === 0) return undefined;
  const words = policy[note + NOTE_ADDRESS] === 4 ? 1 : 4;
  const bytes = new Uint8Array(words * 4);
  const view = new DataView(bytes.buffer);
  for (let i = 0; i < words; i++) view.setInt32(i * 4, policy[note + NOTE_ADDRESS + 1 + i]!);
  return { count, bytes };
}
