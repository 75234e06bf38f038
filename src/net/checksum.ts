/**
 * The internet checksum (RFC 1071), written to be obviously right: 16 bits at a time, in network order.
 *
 * This is the reference that the native vector code is proved against, and the code for packets that are rare
 * (ICMP errors, probes). A *sum* is the folded one's complement sum, 0–0xffff; a *checksum* is its complement, as it
 * stands in a header. Sums of parts may be chained through `initial` as long as every part but the last has an even
 * number of bytes.
 */

/** Folds the carries of a sum of 16-bit words into 16 bits (end-around carry). Any non-negative integer below 2^53. */
export function fold(sum: number): number {
  let folded = sum;
  while (folded > 0xffff) folded = (folded % 0x10000) + Math.floor(folded / 0x10000);
  return folded;
}

/** Folded sum of `length` bytes at `offset`, on top of `initial`; an odd last byte counts as its word's high half. */
export function sum(bytes: Uint8Array, offset: number, length: number, initial = 0): number {
  let total = initial;
  const even = length - (length % 2);
  for (let i = 0; i < even; i += 2) total += bytes[offset + i]! * 256 + bytes[offset + i + 1]!;
  if (even < length) total += bytes[offset + even]! * 256;
  return fold(total);
}

/** The checksum of these bytes, whose own checksum field must be zero; 0 over bytes that carry a right one. */
export function checksum(bytes: Uint8Array, offset: number, length: number, initial = 0): number {
  return 0xffff - sum(bytes, offset, length, initial);
}

/**
 * The checksum after one 16-bit word of the covered bytes changed: RFC 1624, equation 3, HC' = ~(~HC + ~m + m').
 * (RFC 1141's shorter form can end in the wrong one of the two zeros.)
 */
export function updateChecksum(before: number, oldWord: number, newWord: number): number {
  return 0xffff - fold(0xffff - before + (0xffff - oldWord) + newWord);
}

/** `updateChecksum` for an aligned 32-bit word, such as an IPv4 address. */
export function updateChecksum32(before: number, oldWord: number, newWord: number): number {
  const high = updateChecksum(before, oldWord >>> 16, newWord >>> 16);
  return updateChecksum(high, oldWord & 0xffff, newWord & 0xffff);
}

/**
 * Sum of the IPv4 pseudo header (RFC 9293 3.1, RFC 768): source, destination, zero, protocol, transport length.
 * @param source unsigned 32-bit word
 * @param destination unsigned 32-bit word
 * @param length bytes of transport header and payload
 */
export function pseudoHeaderSum4(source: number, destination: number, protocol: number, length: number): number {
  return fold((source >>> 16) + (source & 0xffff) + (destination >>> 16) + (destination & 0xffff) + protocol + length);
}

/**
 * Sum of the IPv6 pseudo header (RFC 8200 8.1): source, destination, 32-bit transport length, protocol.
 * @param addressesOffset where 16 bytes of source and 16 of destination stand together, as in the header at byte 8
 */
export function pseudoHeaderSum6(bytes: Uint8Array, addressesOffset: number, protocol: number, length: number): number {
  return fold(sum(bytes, addressesOffset, 32) + (length >>> 16) + (length & 0xffff) + protocol);
}
