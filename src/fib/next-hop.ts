/** A next hop as embedders give it, checked once; what it refers to is in next-hops.ts. */
import { PodwireError } from '../errors.js';
import { Address, MacAddress } from '../net/prefix.js';
import { addressKey } from './senders.js';

/** Where packets for a prefix go. */
export interface NextHop {
  /** Underlay address of the host: its lease's PublicIP. Next hops with one address are one host. */
  readonly address: Address | string;
  /** UDP port; default is the encapsulation's, 8285 for udp and 8472 for vxlan. */
  readonly port?: number;
  /** Further outer addresses that this host sends from. */
  readonly senders?: readonly (Address | string)[];
  /** Path MTU to start with, in bytes of outer packet; a later `setPathMtu` overrides it. */
  readonly mtu?: number;
  /** Inner destination MAC, the VtepMAC of the peer's lease: needed with vxlan, refused with udp. */
  readonly vtepMac?: MacAddress | string;
}

/** A checked {@link NextHop}; equal `key` means equal value, equal `rowKey` means the same row. */
export interface ParsedNextHop {
  readonly key: string;
  readonly rowKey: string;
  readonly address: Address;
  readonly port: number;
  readonly vtepMac: MacAddress | undefined;
  readonly mtu: number | undefined;
  readonly senders: readonly Address[];
}

export const DEFAULT_PORT = 8285;
/** RFC 791: every IPv4 link passes 68 bytes; an IP packet has at most 65,535. */
const SMALLEST_MTU = 68;
const LARGEST_MTU = 65535;

function usable(what: string, value: Address | string): Address {
  const address = Address.from(value);
  if (address.isUnspecified || address.isMulticast || address.isBroadcast) {
    throw new PodwireError(
      'INVALID_ADDRESS',
      `${address.toString()} cannot be a ${what}: it is not the address of one host`,
    );
  }
  return address;
}

export function checkedMtu(mtu: number): number {
  if (Number.isInteger(mtu) && mtu >= SMALLEST_MTU && mtu <= LARGEST_MTU) return mtu;
  throw new PodwireError(
    'INVALID_ARGUMENT',
    `path MTU ${String(mtu)} must be a whole number of bytes from ${SMALLEST_MTU} to ${LARGEST_MTU}`,
  );
}

/** What the table needs to know of a wire format; src/encap has them. */
export interface RowEncapsulation {
  readonly defaultPort: number;
  /** @throws PodwireError for a MAC that the format cannot use, or lacks */
  vtep(mac: MacAddress | string | undefined, whose: string): MacAddress | undefined;
  /** At most ROW_HEADER_BYTES. */
  header(inner: 4, vtepMac: MacAddress | undefined): Uint8Array;
}

/** Takes a MAC or none and puts nothing in front: for tables that no packet is sent by. */
export const NO_ENCAPSULATION: RowEncapsulation = {
  defaultPort: DEFAULT_PORT,
  vtep: (mac) => (typeof mac === 'string' ? MacAddress.parse(mac) : mac),
  header: () => new Uint8Array(0),
};

/** @throws PodwireError INVALID_ADDRESS or INVALID_ARGUMENT with the value that does not do. */
export function parseNextHop(nextHop: NextHop, encapsulation: RowEncapsulation): ParsedNextHop {
  const address = usable('next hop', nextHop.address);
  const hasPorts = encapsulation.defaultPort !== 0;
  const port = hasPorts ? (nextHop.port ?? encapsulation.defaultPort) : 0;
  if (hasPorts && (!Number.isInteger(port) || port < 1 || port > 65535)) {
    throw new PodwireError(
      'INVALID_ARGUMENT',
      `next hop ${address.toString()} has port ${String(port)}: give a whole number from 1 to 65535`,
    );
  }
  const vtepMac = encapsulation.vtep(nextHop.vtepMac, `next hop ${address.toString()}`);
  const mtu = nextHop.mtu === undefined ? undefined : checkedMtu(nextHop.mtu);
  const rowKey = `${addressKey(address)} ${port} ${vtepMac === undefined ? '' : vtepMac.toString()}`;
  let key = `${rowKey} ${mtu ?? ''}`;
  let senders: Address[] = [];
  if (nextHop.senders !== undefined && nextHop.senders.length > 0) {
    const distinct = new Map<string, Address>();
    for (const value of nextHop.senders) {
      const sender = usable('sender', value);
      if (!sender.equals(address)) distinct.set(addressKey(sender), sender);
    }
    senders = [...distinct.values()];
    key = `${key} ${[...distinct.keys()].sort().join(' ')}`;
  }
  return { key, rowKey, address, port, vtepMac, mtu, senders };
}

/** The public form of a checked next hop. */
export function shownNextHop(parsed: ParsedNextHop): NextHop {
  const { address, port, senders, mtu, vtepMac } = parsed;
  return Object.freeze({
    address,
    port,
    ...(senders.length > 0 && { senders: Object.freeze([...senders]) }),
    ...(mtu !== undefined && { mtu }),
    ...(vtepMac !== undefined && { vtepMac }),
  });
}
