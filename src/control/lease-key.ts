/**
 * Names of leases in a store: `10.5.34.0-24`, dual stack `10.12.13.0-24&fd00:12:13::-56`, and flannel's form
 * for IPv6 alone, `0.0.0.0-0&fd42:0:0:22::-64`. Written in one spelling only (RFC 5952), because a store can
 * keep two hosts from creating one name but not from creating two spellings of it.
 */
import { PodwireError } from '../errors.js';
import { Address, Prefix } from '../net/prefix.js';
import type { LeaseSubnets } from './lease.js';

const KEY = /^([0-9.]{7,15})-([0-9]{1,2})(?:&([0-9a-f:]{2,39})-([0-9]{1,3}))?$/;

/** flannel reads the lengths into 5 and 7 bits. */
const MAX_LENGTH = { 4: 31, 6: 127 } as const;

/** The canonical key of a lease. */
export function leaseKey(lease: LeaseSubnets): string {
  if (lease.subnet.family === 6) return `0.0.0.0-0&${part(lease.subnet)}`;
  return lease.subnet6 ? `${part(lease.subnet)}&${part(lease.subnet6)}` : part(lease.subnet);
}

/**
 * The subnets a key names, or undefined when it is no lease key: anything before or after, host bits, lengths
 * flannel cannot hold, upper-case digits. A longer spelling of the IPv6 part is taken, since operators write
 * reservations by hand and flannel takes it too.
 */
export function tryParseLeaseKey(text: string): LeaseSubnets | undefined {
  const match = KEY.exec(text);
  if (!match) return undefined;
  const [, address4 = '', length4 = '', address6, length6] = match;
  const subnet6 = address6 === undefined ? undefined : prefix(address6, length6 ?? '', 6);
  if (address6 !== undefined && subnet6 === undefined) return undefined;
  if (address4 === '0.0.0.0' && length4 === '0') return subnet6 && { subnet: subnet6 };
  const subnet = prefix(address4, length4, 4);
  return subnet && { subnet, ...(subnet6 && { subnet6 }) };
}

/** @throws PodwireError INVALID_ARGUMENT for what {@link tryParseLeaseKey} refuses. */
export function parseLeaseKey(text: string): LeaseSubnets {
  const subnets = tryParseLeaseKey(text);
  if (subnets) return subnets;
  throw new PodwireError(
    'INVALID_ARGUMENT',
    `${JSON.stringify(text.slice(0, 64))} is not a lease key: write it like 10.5.34.0-24 or 10.5.34.0-24&fd00:5:34::-64`,
  );
}

function part(subnet: Prefix): string {
  return `${subnet.address.toString()}-${subnet.length}`;
}

function prefix(addressText: string, lengthText: string, family: 4 | 6): Prefix | undefined {
  const address = Address.tryParse(addressText);
  const length = Number(lengthText);
  if (address?.family !== family || length < 1 || length > MAX_LENGTH[family]) return undefined;
  if (lengthText !== String(length)) return undefined;
  const subnet = Prefix.of(address, length);
  return subnet.address.equals(address) ? subnet : undefined;
}
