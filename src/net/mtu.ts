/**
 * MTUs as quantities that cannot be mixed up, and the one place where they are computed.
 *
 *   underlay MTU   bytes of an outer IP packet that a link or path of the underlay carries (1500 on Ethernet)
 *   inner MTU      bytes of an inner IP packet that fits into such an outer packet: underlay − overhead
 *   overhead       bytes between the two: outer IP header, UDP header and what the encapsulation adds
 *
 * Both kinds are plain numbers at run time; their types differ, so that subtracting the overhead twice, or handing a
 * path MTU to something that wants the TUN's MTU, does not compile.
 */
import { PodwireError } from '../errors.js';
import type { Family } from './prefix.js';

declare const unit: unique symbol;

/** Bytes of outer packet. Made by `underlayMtu`. */
export type UnderlayMtu = number & { readonly [unit]: 'outer packet' };
/** Bytes of inner packet. Made by `innerMtu` and `overlayMtu`. */
export type InnerMtu = number & { readonly [unit]: 'inner packet' };

/** Encapsulations whose overhead is known here. */
export type TunnelKind = 'udp' | 'vxlan' | 'ipip';

/** The least that every host (RFC 791, RFC 1122 3.3.3) or link (RFC 8200 5) must take; less is a lie or a mistake. */
export const MTU_FLOOR: Readonly<Record<Family, number>> = { 4: 576, 6: 1280 };
/** The largest IPv4 packet; a larger MTU promises nothing. */
export const MTU_CEILING = 65_535;
/** What is assumed where nobody says otherwise: Ethernet. */
export const DEFAULT_UNDERLAY_MTU = 1500;

const IP_HEADER: Readonly<Record<Family, number>> = { 4: 20, 6: 40 };
const UDP_HEADER = 8;
const VXLAN_HEADER = 8;
const ETHERNET_HEADER = 14;

/** Bytes that an encapsulation adds to an inner packet: ipip 20 / 40, udp 28 / 48, vxlan 50 / 70 (outer IPv4 / IPv6). */
export function overheadOf(tunnel: TunnelKind, outerFamily: Family): number {
  if (tunnel === 'ipip') return IP_HEADER[outerFamily];
  const datagram = IP_HEADER[outerFamily] + UDP_HEADER;
  return tunnel === 'vxlan' ? datagram + VXLAN_HEADER + ETHERNET_HEADER : datagram;
}

/** Whether `bytes` can be an underlay or path MTU at all: an integer between the family's floor and 65,535. */
export function isPlausibleMtu(bytes: number, family: Family): boolean {
  return Number.isInteger(bytes) && bytes >= MTU_FLOOR[family] && bytes <= MTU_CEILING;
}

/**
 * Checks an MTU of the underlay that somebody configured.
 * @param what names the value in the error, such as `option underlayMtu`
 * @throws PodwireError INVALID_ARGUMENT for anything that is not plausible
 */
export function underlayMtu(bytes: number, family: Family, what = 'underlay MTU'): UnderlayMtu {
  if (!isPlausibleMtu(bytes, family)) {
    throw new PodwireError(
      'INVALID_ARGUMENT',
      `${what} is ${String(bytes)}: give a whole number of bytes from ${MTU_FLOOR[family]} to ${MTU_CEILING} (IPv${family} underlay)`,
    );
  }
  return bytes as UnderlayMtu;
}

/** The inner packet that fits into an outer packet of this size. Not below 0. */
export function innerMtu(underlay: UnderlayMtu, overhead: number): InnerMtu {
  return Math.max(0, underlay - overhead) as InnerMtu;
}

/** The outer packet that an inner packet of this size becomes. */
export function outerSize(inner: number, overhead: number): number {
  return inner + overhead;
}

/** The MTUs of one data plane, fixed for its life; the path MTU of a single next hop may be lower. */
export interface OverlayMtu {
  readonly underlay: UnderlayMtu;
  /** MTU of the TUN and of the pods: what `subnet.env` says. */
  readonly overlay: InnerMtu;
  readonly overhead: number;
  /** Whether `overlay` was given rather than computed. */
  readonly explicit: boolean;
  /** The arithmetic on one line, for logs and `doctor`. */
  explain(): string;
}

export interface OverlayMtuInput {
  readonly tunnel: TunnelKind;
  readonly outerFamily: Family;
  /** Bytes of outer packet; default 1500. */
  readonly underlay?: number | undefined;
  /** Where `underlay` comes from, for `explain()`, such as `eth0` or `option underlayMtu`. */
  readonly underlayFrom?: string | undefined;
  /** Bytes of inner packet, given by the user: wins over the arithmetic, and nothing is subtracted from it. */
  readonly override?: number | undefined;
  /** Whether pods use IPv6 inside, whose links must carry 1280 bytes; default false. */
  readonly innerIpv6?: boolean | undefined;
}

/**
 * Computes the overlay MTU.
 * @throws PodwireError INVALID_ARGUMENT when a given value is absurd or the result is too small for what runs inside
 */
export function overlayMtu(input: OverlayMtuInput): OverlayMtu {
  const { tunnel, outerFamily, override } = input;
  const from = input.underlayFrom ?? (input.underlay === undefined ? 'default' : 'given');
  const underlay = underlayMtu(input.underlay ?? DEFAULT_UNDERLAY_MTU, outerFamily, `underlay MTU (${from})`);
  const overhead = overheadOf(tunnel, outerFamily);
  const floor = input.innerIpv6 === true ? MTU_FLOOR[6] : MTU_FLOOR[4] - overhead;
  const computed = innerMtu(underlay, overhead);

  const parts = [`outer IPv${outerFamily} ${IP_HEADER[outerFamily]}`];
  if (tunnel !== 'ipip') parts.push(`UDP ${UDP_HEADER}`);
  if (tunnel === 'vxlan') parts.push(`VXLAN ${VXLAN_HEADER}`, `inner Ethernet ${ETHERNET_HEADER}`);
  const sum = `underlay ${underlay} (${from}) - ${tunnel} overhead ${overhead} (${parts.join(' + ')})`;

  if (override !== undefined) {
    if (!Number.isInteger(override) || override < floor || override > MTU_CEILING - overhead) {
      throw new PodwireError(
        'INVALID_ARGUMENT',
        `overlay MTU is set to ${String(override)}: give a whole number of bytes from ${floor} to ${MTU_CEILING - overhead}, or leave it out to get ${computed} = ${sum}`,
      );
    }
    const note = override > computed ? '; larger packets than that are refused with "fragmentation needed"' : '';
    return made(
      override as InnerMtu,
      true,
      `overlay MTU ${override} as set; computed would be ${computed} = ${sum}${note}`,
    );
  }
  if (computed < floor) {
    throw new PodwireError(
      'INVALID_ARGUMENT',
      `overlay MTU ${computed} = ${sum} is below ${floor}${input.innerIpv6 === true ? ', the least that IPv6 pods need' : ''}: raise the underlay MTU to at least ${floor + overhead}`,
    );
  }
  return made(computed, false, `overlay MTU ${computed} = ${sum}`);

  function made(overlay: InnerMtu, explicit: boolean, explanation: string): OverlayMtu {
    return { underlay, overlay, overhead, explicit, explain: () => explanation };
  }
}
