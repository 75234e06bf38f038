/** Two hosts whose engines can reach each other through some underlay: what the port contract runs on. */
import { PodwireError } from '../errors.js';
import { COUNTER_NAMES } from '../dataplane/counters.js';
import { MemoryPort } from '../io/memory.js';
import { MemoryNetwork } from '../io/memory-network.js';
import type { MemoryNetworkOptions } from '../io/memory-network.js';
import type { Offload } from '../io/segmentation.js';
import type { Encapsulation } from '../encap/encapsulation.js';
import { udpEncapsulation } from '../encap/udp.js';
import { vxlanEncapsulation } from '../encap/vxlan.js';
import type { Family } from '../net/prefix.js';
import { Address, MacAddress } from '../net/prefix.js';
import { VirtualHost } from './virtual-host.js';

/** Own leases of host 0 and host 1, on every link. */
export const LEASES: readonly (readonly [string, string])[] = [
  ['10.1.1.0/24', 'fd00:1:1::/64'],
  ['10.1.2.0/24', 'fd00:1:2::/64'],
];
/** Hardware addresses of both hosts' tunnel ends and of the stranger's. */
export const LINK_MACS: readonly (MacAddress | undefined)[] = ['01', '02', '09'].map((last) =>
  MacAddress.parse(`0e:00:00:00:00:${last}`),
);

/** A wire format as the ends of a link use it: 0 and 1 are the hosts, 2 is the stranger. */
export interface LinkFormat {
  readonly name: string;
  readonly encapsulations: readonly [Encapsulation, Encapsulation, Encapsulation];
  readonly macs: readonly (MacAddress | undefined)[];
}

function vxlanAt(end: number): Encapsulation {
  return vxlanEncapsulation({ vni: 0xabcdef, vtepMac: LINK_MACS[end]! });
}

export const LINK_FORMATS: readonly LinkFormat[] = [
  { name: 'udp', encapsulations: [udpEncapsulation, udpEncapsulation, udpEncapsulation], macs: [] },
  { name: 'vxlan', encapsulations: [vxlanAt(0), vxlanAt(1), vxlanAt(2)], macs: LINK_MACS },
];

/** UDP port of both hosts. */
export const LINK_PORT = 8285;

export interface LinkEnd {
  readonly host: VirtualHost;
  /** Underlay address; the port is {@link LINK_PORT}. */
  readonly address: Address;
  /** A pod of this host sends a packet or superpacket. */
  inject(packet: Uint8Array, offload?: Offload): void;
  /** What was delivered to the pods since the last call, one array a packet: superpackets are cut again. */
  take(): Uint8Array[];
}

export interface PortLink {
  readonly format: LinkFormat;
  readonly ends: readonly [LinkEnd, LinkEnd];
  /** An underlay address of neither host, from which {@link sendAs} sends. */
  readonly stranger: Address;
  /** Sends a datagram from the stranger's address to host `to`. */
  sendAs(to: 0 | 1, payload: Uint8Array): Promise<void>;
  /** Lets time pass, so that what is on its way can arrive. */
  pause(): Promise<void>;
  close(): Promise<void>;
}

/** Opens a link whose underlay has this address family; the hosts know their own leases and have no routes. */
export type OpenLink = (outer: Family, format: LinkFormat) => Promise<PortLink>;

/** How long {@link until} waits: far more than any link needs, so that a slow machine fails no test. */
const PATIENCE_MS = 20_000;

/**
 * Moves both hosts on until `done` holds, then until nothing moves any more.
 * @throws PodwireError ABORTED when it does not come true
 */
export async function until(link: PortLink, done: () => boolean, what: string): Promise<void> {
  const deadline = performance.now() + PATIENCE_MS;
  const step = async (): Promise<number> => {
    const rows = link.ends[0].host.poll() + link.ends[1].host.poll();
    await link.pause();
    return rows;
  };
  while (!done()) {
    await step();
    if (performance.now() < deadline) continue;
    const counters = link.ends.map(({ host }) => JSON.stringify(nonZero(host.counters())));
    throw new PodwireError('ABORTED', `waited in vain until ${what}; counters: ${counters.join(' and ')}`);
  }
  // Two idle rounds: the last verdicts are carried out by the turn after their decision.
  for (let idle = 0; idle < 2;) idle = (await step()) === 0 ? idle + 1 : 0;
}

function nonZero(counters: Readonly<Record<string, number>>): Record<string, number> {
  return Object.fromEntries(Object.entries(counters).filter(([, value]) => value !== 0));
}

const MEMORY_ADDRESSES: Readonly<Record<Family, readonly [string, string, string]>> = {
  4: ['192.0.2.1', '192.0.2.2', '192.0.2.9'],
  6: ['2001:db8::1', '2001:db8::2', '2001:db8::9'],
};
const STRANGER_PORT = 40_000;

/** A link over a {@link MemoryNetwork}. */
export function openMemoryLink(
  outer: Family,
  options: MemoryNetworkOptions = {},
  format: LinkFormat = LINK_FORMATS[0]!,
): PortLink {
  const network = new MemoryNetwork({ mtu: 65_535, ...options });
  const [first, second, stranger] = MEMORY_ADDRESSES[outer].map((text) => Address.parse(text)) as [
    Address,
    Address,
    Address,
  ];
  const end = (address: Address, index: 0 | 1): LinkEnd => {
    const host = new VirtualHost({
      local: LEASES[index]!,
      outer,
      encapsulation: format.encapsulations[index],
      openPort: ({ memory, nextHops, reader }) =>
        new MemoryPort(
          {
            network,
            bind: { address, port: LINK_PORT },
            memory,
            counterNames: COUNTER_NAMES,
            encapsulation: format.encapsulations[index],
            innerMtu: 1500 - format.encapsulations[index].overhead(outer),
          },
          nextHops,
          reader,
        ),
    });
    return {
      host,
      address,
      inject: (packet, offload) => void host.port.inject(packet, offload),
      take: () => host.port.take(),
    };
  };
  const ends: readonly [LinkEnd, LinkEnd] = [end(first, 0), end(second, 1)];
  return {
    format,
    ends,
    stranger,
    sendAs: (to, payload) => {
      const target = { address: ends[to].address, port: LINK_PORT };
      network.send({ address: stranger, port: STRANGER_PORT }, target, payload);
      return Promise.resolve();
    },
    pause: () => {
      network.advance();
      return Promise.resolve();
    },
    close: () => {
      for (const { host } of ends) host.close();
      return Promise.resolve();
    },
  };
}
