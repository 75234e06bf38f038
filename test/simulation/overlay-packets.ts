/** The packets of the overlay simulation: every one can be told from its bytes, whole or as a fragment. */

/** A tag that no packet of a pod has. */
export const NOBODYS = 0xfffffff;

const PROTOCOL_ICMP = 1;
const PROTOCOL_ICMPV6 = 58;

/** Who holds which subnet; a subnet is a number 0–255 and stands for 10.1.n.0/24 and fd00:1:n::/64. */
export type Leases = ReadonlyMap<number, number>;

export interface Knowledge {
  readonly own: ReadonlySet<number>;
  readonly leases: Leases;
}

export interface Sent {
  readonly bytes: Uint8Array;
  /** Host that sent it, whatever its inner source says. */
  readonly host: number;
}

export interface Receiver {
  readonly index: number;
  /** What it knew when it took the decisions that its latest turn carried out. */
  readonly decided: Knowledge;
}

/**
 * Judges a packet that `host` gave to its pods: it must be what a pod sent, to an address of this host, from an address
 * that its sender may use; or an answer to a packet of this host. Returns what is wrong as text.
 * @param corrupted bits may have been turned: nobody can say then which packet it was, but its addresses still count
 */
export function judge(
  bytes: Uint8Array,
  host: Receiver,
  all: readonly Sent[],
  corrupted: boolean,
): string | { readonly answer: boolean; readonly id: number } {
  const four = bytes[0]! >>> 4 === 4;
  const id = idOf(bytes, four);
  const protocol = four ? bytes[9] : bytes[6];
  if (protocol === PROTOCOL_ICMP || protocol === PROTOCOL_ICMPV6) {
    const quote = bytes.subarray(four ? 28 : 48);
    const offender = all[idOf(quote, four)];
    if (offender?.host === host.index && startsWith(offender.bytes, quote)) return { answer: true, id };
    if (!corrupted) return 'an answer to a packet that is not its own';
  }
  const [source, destination] = subnetsOf(bytes, four);
  const { own, leases } = host.decided;
  if (!own.has(destination)) return `got a packet to subnet ${destination}`;
  if (own.has(source)) return 'got a packet that claims to be its own';
  if (corrupted) return { answer: false, id };
  const sent = all[id];
  if (sent === undefined) return 'got a packet that nobody sent';
  if (!isPartOf(bytes, sent.bytes, four)) return `packet ${id} arrived changed`;
  // A lease that it holds itself by its own late view is nobody's.
  const holder = leases.get(source);
  const foreign = holder !== undefined && holder !== sent.host && holder !== host.index;
  return foreign ? `got packet ${id} of host ${sent.host} with a source of host ${holder}` : { answer: false, id };
}

export function prefix4(subnet: number): string {
  return `10.1.${subnet}.0/24`;
}

export function prefix6(subnet: number): string {
  return `fd00:1:${subnet.toString(16)}::/64`;
}

/** Four bytes of tag, then bytes that depend on it. */
export function payload(tag: number, length: number): Uint8Array {
  const bytes = Uint8Array.from({ length }, (_, i) => tag * 7 + i * 3);
  new DataView(bytes.buffer).setUint32(0, tag);
  return bytes;
}

/** The number of the packet: the id of an IPv4 packet, which its fragments share; the tag behind IPv6 and UDP header. */
function idOf(bytes: Uint8Array, four: boolean): number {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (four) return view.getUint16(4);
  return bytes.length >= 52 ? view.getUint32(48) : NOBODYS;
}

/** Subnets of source and destination, -1 for what is none. */
function subnetsOf(bytes: Uint8Array, four: boolean): [number, number] {
  const at = (offset: number): number => {
    if (four) return bytes[offset] === 10 && bytes[offset + 1] === 1 ? bytes[offset + 2]! : -1;
    const start = [0xfd, 0, 0, 1, 0];
    const rest = bytes.subarray(offset + 6, offset + 8);
    return startsWith(bytes.subarray(offset), start) && rest.every((byte) => byte === 0) ? bytes[offset + 5]! : -1;
  };
  return four ? [at(12), at(16)] : [at(8), at(24)];
}

function startsWith(whole: Uint8Array, start: Uint8Array | readonly number[]): boolean {
  return start.length <= whole.length && [...start].every((byte, i) => whole[i] === byte);
}

/** Whether these are the sent bytes, or a fragment of them at the place that it names. */
function isPartOf(bytes: Uint8Array, sent: Uint8Array, four: boolean): boolean {
  const field = four ? (bytes[6]! << 8) | bytes[7]! : 0;
  if ((field & 0x3fff) === 0) return bytes.length === sent.length && startsWith(sent, bytes);
  const offset = 20 + (field & 0x1fff) * 8;
  const data = bytes.subarray(20);
  const last = (field & 0x2000) === 0;
  if (!startsWith(sent.subarray(offset), data) || last !== (offset + data.length === sent.length)) return false;
  return startsWith(bytes.subarray(12, 20), sent.subarray(12, 20));
}
