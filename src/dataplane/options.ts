/** What {@link Dataplane.open} takes, checked at this border and nowhere behind it. */
import { PodwireError } from '../errors.js';
import type { Encapsulation, EncapsulationSpec } from '../encap/encapsulation.js';
import { openEncapsulation } from '../encap/open.js';
import type { SpinMode, TunRung, UdpRung } from '../io/ports.js';
import type { OverlayMtu } from '../net/mtu.js';
import { overlayMtu } from '../net/mtu.js';
import type { MacAddress } from '../net/prefix.js';
import { Address, Prefix } from '../net/prefix.js';
import type { Logger } from './logger.js';
import { silentLogger } from './logger.js';
import type { PathMtuOptions } from './pmtu.js';
import { pathMtuSettings } from './pmtu-options.js';
import type { SourceCheck } from './policy.js';
import { SOURCE_CHECKS } from './policy.js';

export interface DataplaneOptions {
  /** TUN name, or a pattern with `%d`; at most 15 characters; default `flannel%d`, as flanneld names it. */
  readonly device?: string;
  /** Underlay address and UDP port to receive on and send from; port 8285 (vxlan: 8472) unless given. */
  readonly bind: { readonly address: Address | string; readonly port?: number };
  /** Own leases: inner destinations that are delivered to the TUN, and sources that no peer may use. */
  readonly local: readonly (Prefix | string)[];
  /** Addresses of this host: packets from the underlay with such an inner source are dropped. */
  readonly ownAddresses?: readonly (Address | string)[];
  /**
   * `udp` (default): flannel's framing, the bare packet. `vxlan`: RFC 7348 as flannel's kernel device speaks it, `vni`
   * from the network config, `vtepMac` this host's own, as in its lease; every next hop then has a `vtepMac` too.
   * `ipip`: RFC 2003 over a raw socket, IPv4 in IPv4 with one worker and without ports and peer probes.
   */
  readonly encapsulation?:
    'udp' | 'ipip' | { readonly type: 'vxlan'; readonly vni: number; readonly vtepMac: MacAddress | string };
  /** MTU of the underlay device in bytes, default 1500. */
  readonly underlayMtu?: number;
  /** Threads, each with a TUN queue and a UDP socket: 1 to 32; `auto` is one for every two processors, at most 4. */
  readonly workers?: number | 'auto';
  /**
   * Which outer senders are believed: `lease` (default) wants a sender that holds a lease and an inner source that is
   * not leased to another host; `strict` wants the source to be in the sender's own lease; `off` asks nothing. An
   * inner source in our own lease or of our own addresses is dropped always.
   */
  readonly sourceCheck?: SourceCheck;
  /** `flow` (default): the outer source port depends on the inner flow. `fixed`: always the bound port. */
  readonly sourcePort?: 'flow' | 'fixed';
  /** Highest offload rung to use; `auto` (default) takes the best that the kernel grants. */
  readonly offload?: { readonly tun?: TunRung | 'auto'; readonly udp?: UdpRung | 'auto' };
  /** `adaptive` (default) spins for up to 200 µs before blocking while that pays off, for at most a core a worker. */
  readonly spin?: SpinMode;
  /** Path MTU probing by ICMP where the optional package raw-socket loads; `false` switches it off. */
  readonly pathMtu?: PathMtuOptions | false;
  /** `true` (default) asks every peer once a second for a sign of life, see probes.ts; `false` only answers theirs. */
  readonly peerProbes?: boolean;
  /** The MTU configured on the route to an underlay address, if any: never one that the kernel learnt from ICMP. */
  readonly configuredMtu?: (underlay: Address) => Promise<number | undefined>;
  /** Most routes at a time, default 20,000; memory is committed as it is used. */
  readonly maxRoutes?: number;
  /** Threads that {@link joinOverlay} has started ahead, for `workers` that are as many. */
  readonly threads?: ReadyThreads;
  readonly logger?: Logger;
}

/** Threads for workers that wait for their data plane. */
export interface ReadyThreads {
  /**
   * The Piscina pool of so many threads, which is the caller's then; undefined if there are more or fewer. Without its
   * type: piscina's declarations do not compile under all of an embedder's options.
   */
  take(count: number): unknown;
}

/** {@link DataplaneOptions} with every default filled in. */
export interface ResolvedOptions {
  readonly device: string;
  readonly address: Address;
  readonly port: number;
  readonly local: readonly Prefix[];
  readonly ownAddresses: readonly Address[];
  readonly encapsulation: Encapsulation;
  readonly mtu: OverlayMtu;
  readonly workers: number;
  readonly sourceCheck: SourceCheck;
  readonly fixedSourcePort: boolean;
  readonly tun: TunRung;
  readonly udp: UdpRung;
  readonly spin: SpinMode;
  readonly pathMtu: PathMtuOptions | false;
  readonly peerProbes: boolean;
  readonly configuredMtu: ((underlay: Address) => Promise<number | undefined>) | undefined;
  readonly maxRoutes: number;
  readonly threads: ReadyThreads | undefined;
  readonly logger: Logger;
}

export const MOST_WORKERS = 32;
const MOST_ROUTES = 500_000;

/** As many workers as `auto` stands for. @param processors how many this process may use */
export function automaticWorkers(processors: number): number {
  return Math.min(4, Math.max(1, Math.floor(processors / 2)));
}

function oneOf<T extends string>(what: string, value: string | undefined, allowed: readonly T[], fallback: T): T {
  if (value === undefined) return fallback;
  if ((allowed as readonly string[]).includes(value)) return value as T;
  throw new PodwireError(
    'INVALID_ARGUMENT',
    `option ${what} is ${JSON.stringify(value)}: give one of ${allowed.join(', ')}`,
  );
}

function whole(what: string, value: number | undefined, low: number, high: number, fallback: number): number {
  if (value === undefined) return fallback;
  if (Number.isInteger(value) && value >= low && value <= high) return value;
  throw new PodwireError(
    'INVALID_ARGUMENT',
    `option ${what} is ${String(value)}: give a whole number from ${low} to ${high}`,
  );
}

function deviceName(name: string): string {
  // dev_valid_name() in net/core/dev.c, which counts bytes; and one %d at most
  const bytes = typeof name === 'string' ? new TextEncoder().encode(name).length : 0;
  if (/^(?!\.{1,2}$)[^\s/:%]*(%d)?[^\s/:%]*$/.test(name) && bytes >= 1 && bytes <= 15) return name;
  throw new PodwireError(
    'INVALID_ARGUMENT',
    `option device is ${JSON.stringify(name)}: give 1 to 15 characters without space, '/' and ':', such as flannel0 or flannel%d`,
  );
}

/** Lists come from callers without types too; a text would be taken apart letter by letter. */
function list<T>(what: string, value: readonly T[], example: string): readonly T[] {
  if (Array.isArray(value)) return value as readonly T[];
  throw new PodwireError(
    'INVALID_ARGUMENT',
    `option ${what} is ${JSON.stringify(value)}: give a list such as ${example}`,
  );
}

/**
 * @param processors how many processors this process may use
 * @throws PodwireError INVALID_ARGUMENT or INVALID_ADDRESS
 */
export function resolveOptions(options: DataplaneOptions, processors: number): ResolvedOptions {
  if (typeof options.bind !== 'object' || options.bind === null) {
    throw new PodwireError('INVALID_ARGUMENT', `option bind is missing: give { address: '192.0.2.1', port: 8285 }`);
  }
  const address = Address.from(options.bind.address);
  if (address.isMulticast || address.isBroadcast) {
    throw new PodwireError(
      'INVALID_ARGUMENT',
      `option bind.address is ${address.toString()}: give an address of this host's underlay interface`,
    );
  }
  const encapsulation = openEncapsulation(encapsulationOf(options.encapsulation ?? 'udp'));
  const isUdp = encapsulation.carrier === 'udp';
  if (!isUdp && address.family === 6) {
    throw new PodwireError(
      'INVALID_ARGUMENT',
      `option bind.address is ${address.toString()}: encapsulation ${encapsulation.name} needs an IPv4 underlay`,
    );
  }
  // Every raw socket of a protocol gets a copy of every packet: one worker is all that can share the work.
  const most = isUdp ? MOST_WORKERS : 1;
  const auto = Math.min(most, automaticWorkers(processors));
  const workers = options.workers === 'auto' ? auto : whole('workers', options.workers, 1, most, auto);
  return {
    device: deviceName(options.device ?? 'flannel%d'),
    address,
    port: isUdp ? whole('bind.port', options.bind.port, 1, 65_535, encapsulation.defaultPort) : 0,
    local: list('local', options.local, `['10.1.2.0/24']`).map((prefix) => Prefix.from(prefix)),
    ownAddresses: list('ownAddresses', options.ownAddresses ?? [], `['10.1.2.1']`).map((own) => Address.from(own)),
    encapsulation,
    mtu: overlayMtu({ tunnel: encapsulation.name, outerFamily: address.family, underlay: options.underlayMtu }),
    workers,
    sourceCheck: oneOf('sourceCheck', options.sourceCheck, SOURCE_CHECKS, 'lease'),
    fixedSourcePort: oneOf('sourcePort', options.sourcePort, ['flow', 'fixed'], 'flow') === 'fixed' || !isUdp,
    tun: tunRung(options.offload?.tun),
    udp: udpRung(options.offload?.udp),
    spin: oneOf('spin', options.spin, ['off', 'adaptive', 'always'], 'adaptive'),
    pathMtu: options.pathMtu === false ? false : pathMtuSettings(options.pathMtu ?? {}),
    peerProbes: isUdp && (options.peerProbes ?? true),
    configuredMtu: options.configuredMtu,
    maxRoutes: whole('maxRoutes', options.maxRoutes, 1, MOST_ROUTES, 20_000),
    threads: options.threads,
    logger: options.logger ?? silentLogger,
  };
}

function encapsulationOf(given: NonNullable<DataplaneOptions['encapsulation']>): EncapsulationSpec {
  if (given === 'udp' || given === 'ipip') return given;
  if (typeof given === 'object' && given !== null && (given as { type?: unknown }).type === 'vxlan') {
    return { type: 'vxlan', vni: given.vni, vtepMac: String(given.vtepMac) };
  }
  throw new PodwireError(
    'INVALID_ARGUMENT',
    `option encapsulation is ${JSON.stringify(given)}: give 'udp', 'ipip' or { type: 'vxlan', vni: 1, vtepMac: '0e:12:34:56:78:9a' }`,
  );
}

function tunRung(value: TunRung | 'auto' | undefined): TunRung {
  const rung = oneOf('offload.tun', value, ['auto', 'uso', 'tso', 'csum', 'none'], 'auto');
  return rung === 'auto' ? 'uso' : rung;
}

function udpRung(value: UdpRung | 'auto' | undefined): UdpRung {
  const rung = oneOf('offload.udp', value, ['auto', 'gso', 'mmsg', 'single'], 'auto');
  return rung === 'auto' ? 'gso' : rung;
}
