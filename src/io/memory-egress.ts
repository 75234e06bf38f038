/** How the port in memory describes what a pod sent: pw_tun_accept in native/egress.c. */
import type { Batch } from './batch.js';
import {
  EF_BAD,
  EF_TCP,
  EF_UDP,
  E_FLAGS,
  E_GSO,
  E_HASH,
  E_HEADER,
  E_LENGTH,
  E_OFFSET,
  E_SEGMENTS,
  ROW_WORDS,
} from './batch.js';
import type { Offload } from './segmentation.js';
import { completeChecksum, flowHash, parseHeaders, superpacketHeader } from './segmentation.js';

export interface FromPod {
  readonly packet: Uint8Array;
  readonly offload: Offload;
}

/** Fills the egress row at word `row` for the packet whose bytes lie at `offset` of the TUN arena. */
export function describeEgress(batch: Batch, row: number, offset: number, { packet, offload }: FromPod): void {
  const { meta, tun } = batch;
  meta.fill(0, row, row + ROW_WORDS);
  meta[row + E_OFFSET] = offset;
  meta[row + E_LENGTH] = packet.length;
  meta[row + E_SEGMENTS] = 1;
  const headers = parseHeaders(packet);
  if (headers === undefined) {
    meta[row + E_FLAGS] = EF_BAD;
    return;
  }
  meta[row + E_HASH] = flowHash(packet, headers);
  const { gso, checksum } = offload;
  if (gso === undefined) {
    // What follows the packet's own length is padding and goes nowhere.
    meta[row + E_LENGTH] = headers.length;
    const whole = tun.subarray(offset, offset + headers.length);
    if (checksum !== undefined && !completeChecksum(whole, checksum)) meta[row + E_FLAGS] = EF_BAD;
    return;
  }
  const header = superpacketHeader(packet, gso.kind, gso.size);
  if (header === undefined) {
    meta[row + E_FLAGS] = EF_BAD;
    return;
  }
  meta[row + E_FLAGS] = gso.kind === 'tcp' ? EF_TCP : EF_UDP;
  meta[row + E_GSO] = gso.size;
  meta[row + E_HEADER] = header;
  meta[row + E_SEGMENTS] = Math.ceil((packet.length - header) / gso.size);
}
