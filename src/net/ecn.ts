/**
 * Congestion marks between outer and inner header: RFC 6040, in the variant of the kernel's tunnels
 * (include/net/inet_ecn.h), which writes CE as ECT(0) on the way out. The same as native/vxlan.c, for the port in memory.
 */

export const NOT_ECT = 0;
export const ECT1 = 1;
export const ECT0 = 2;
export const CE = 3;

/** The outer mark around a packet with this inner one. */
export function outerMark(inner: number): number {
  return inner === CE ? ECT0 : inner;
}

/** The inner mark after an outer one was taken off, or undefined when the packet must be dropped. */
export function innerMark(outer: number, inner: number): number | undefined {
  if (inner === NOT_ECT) return outer === CE ? undefined : NOT_ECT;
  if (outer === CE) return CE;
  return outer === ECT1 && inner === ECT0 ? ECT1 : inner;
}
