/**
 * VXLAN (RFC 7348), as flannel's kernel device speaks it: an Ethernet frame between two VTEPs around each inner packet.
 *
 *   0 flags: 08, the I flag | 1 reserved:24 | 4 VNI:24 | 7 reserved | 8 destination MAC: the peer's VTEP
 *   14 source MAC: ours | 20 EtherType: 0800 or 86dd | 22 inner IP packet
 *
 * What the kernel's device drops is dropped here too (drivers/net/vxlan/vxlan_core.c): any flag or reserved bit besides
 * the I flag, so group policies (GBP) and GPE are refused rather than misread; another VNI; our own MAC as the source;
 * frames to another MAC, and to groups, which its IP stack does not forward. ARP and neighbour discovery get no answer:
 * flannel's peers have permanent entries.
 */
import { PodwireError } from '../errors.js';
import { overheadOf } from '../net/mtu.js';
import { IPV4_HEADER_BYTES } from '../net/packet.js';
import { MacAddress } from '../net/prefix.js';
import type { Encapsulation } from './encapsulation.js';

export interface VxlanOptions {
  /** 0 to 2^24 - 1. */
  readonly vni: number;
  /** MAC of this host's end, as in its lease: unicast. */
  readonly vtepMac: MacAddress | string;
}

const HEADER_BYTES = 22;
const I_FLAG = 0x08;
const DESTINATION_MAC = 8;
const SOURCE_MAC = 14;
const ETHERTYPE = 20;
const ETHERTYPES = { 4: [0x08, 0x00], 6: [0x86, 0xdd] } as const;
const MOST_VNI = 0xffffff;

/** A MAC that one VTEP can have. @throws PodwireError INVALID_ADDRESS saying whose it is */
export function vtepAddress(mac: MacAddress | string, whose: string): MacAddress {
  const address = typeof mac === 'string' ? MacAddress.parse(mac) : mac;
  if (((address.bytes[0] ?? 1) & 1) === 0 && address.bytes.some((byte) => byte !== 0)) return address;
  throw new PodwireError(
    'INVALID_ADDRESS',
    `${whose} is ${address.toString()}, which is no address of one device: give a unicast MAC such as 0e:12:34:56:78:9a`,
  );
}

/** @throws PodwireError INVALID_ARGUMENT or INVALID_ADDRESS with the value that does not do */
export function vxlanEncapsulation(options: VxlanOptions): Encapsulation {
  const { vni } = options;
  if (!Number.isInteger(vni) || vni < 0 || vni > MOST_VNI) {
    throw new PodwireError(
      'INVALID_ARGUMENT',
      `option encapsulation.vni is ${String(vni)}: give a whole number from 0 to ${MOST_VNI}`,
    );
  }
  const own = vtepAddress(options.vtepMac, 'option encapsulation.vtepMac').bytes;
  const vxlan = Uint8Array.of(I_FLAG, 0, 0, 0, vni >>> 16, vni >>> 8, vni, 0);
  const accepts = Uint8Array.of(...vxlan, ...own);
  const has = (bytes: Uint8Array, at: number, frame: Uint8Array): boolean =>
    bytes.every((byte, i) => frame[at + i] === byte);

  return {
    name: 'vxlan',
    carrier: 'udp',
    defaultPort: 8472,
    headerBytes: HEADER_BYTES,
    accepts,
    carriesEcn: true,
    overhead: (outer) => overheadOf('vxlan', outer),
    vtep(mac, whose) {
      if (mac !== undefined) return vtepAddress(mac, `vtepMac of ${whose}`);
      throw new PodwireError(
        'INVALID_ARGUMENT',
        `${whose} has no vtepMac: vxlan needs the VtepMAC of the peer's lease (BackendData)`,
      );
    },
    header(inner, vtepMac) {
      if (vtepMac === undefined) throw new PodwireError('INVALID_ARGUMENT', 'a VXLAN frame needs a VTEP MAC to go to');
      return Uint8Array.of(...vxlan, ...vtepMac.bytes, ...own, ...ETHERTYPES[inner]);
    },
    fault(frame) {
      if (frame.length < HEADER_BYTES + IPV4_HEADER_BYTES) return 'dropShort';
      if (!has(vxlan.subarray(0, 4), 0, frame) || frame[7] !== 0) return 'dropVxlanFlags';
      if (!has(vxlan, 0, frame)) return 'dropVxlanVni';
      if (has(own, SOURCE_MAC, frame)) return 'dropVxlanLoop';
      const version = frame[HEADER_BYTES]! >>> 4;
      if (version !== 4 && version !== 6) return 'dropVxlanType';
      if (ETHERTYPES[version].some((byte, i) => frame[ETHERTYPE + i] !== byte)) return 'dropVxlanType';
      if (has(own, DESTINATION_MAC, frame)) return undefined;
      return (frame[DESTINATION_MAC]! & 1) !== 0 ? 'dropVxlanGroup' : 'dropVxlanMac';
    },
  };
}
