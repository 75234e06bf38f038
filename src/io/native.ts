/** The port to the real kernel, and the only module that loads the addon. */
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { getSystemErrorName } from 'node:util';
import type { PodwireErrorCode } from '../errors.js';
import { PodwireError, messageOf } from '../errors.js';
import type { BatchMemory } from './batch.js';
import { openBatch } from './batch.js';
import type { PacketPort, SpinMode, TunRung } from './ports.js';

interface NativeEngine {
  readonly turn: (this: void, timeoutMs: number) => number;
  readonly destroy: (this: void) => void;
}

/** What native/addon*.c export; counts or -errno. */
interface Addon {
  tunOpen(
    name: string,
    rung: number,
    multiQueue: boolean,
    first: boolean,
  ): { fd: number; name: string; index: number; rung: number } | number;
  tunAttach(fd: number, attached: boolean): number;
  tunQueueLength(name: string, packets: number): number;
  udpOpen(
    address: Uint8Array,
    port: number,
    options: {
      receive: boolean;
      gro: boolean;
      tos: boolean;
      reusePort: boolean;
      shareAfter: boolean;
      bufferBytes: number;
    },
  ): number;
  ipipOpen(address: Uint8Array, bufferBytes: number): number;
  icmpOpen(family: number): number;
  eventOpen(): number;
  eventSignal(fd: number): number;
  closeFd(fd: number): number;
  socketDrops(fd: number): number;
  probeAsk(fd: number, address: Uint8Array, port: number, nonce: number): number;
  linkRead(index: number): { txDropped: number; rxDropped: number; mtu: number; flags: number } | number;
  notify(address: string, text: string): number;
  probeUdpSegments(): number;
  checksum(bytes: Uint8Array, variant: string): number;
  noop(): void;
  layout(): Record<string, number> & { counters: string[]; checksumVariant: string };
  engineCreate(config: object): NativeEngine | number;
  programRun(
    argv: Uint8Array,
    envp: Uint8Array,
    input: Uint8Array | undefined,
    timeoutMs: number,
    mostBytes: number,
    done: (status: number, output: Buffer, errors: Buffer) => void,
  ): number;
}

let loaded: Addon | undefined;

/**
 * The addon, loaded at first use. `PODWIRE_ADDON` names another binary (the sanitizer build).
 * @throws PodwireError ADDON when there is no binary that loads here
 */
export function addon(): Addon {
  if (loaded !== undefined) return loaded;
  const require = createRequire(import.meta.url);
  const root = join(dirname(fileURLToPath(import.meta.url)), '..', '..');
  const named = process.env['PODWIRE_ADDON'];
  try {
    loaded = (
      named === undefined ? (require('node-gyp-build') as (dir: string) => unknown)(root) : require(named)
    ) as Addon;
  } catch (cause) {
    throw new PodwireError(
      'ADDON',
      `cannot load podwire's native addon (${process.platform}-${process.arch}, Node ${process.versions.node}): ${messageOf(cause)}; build it with 'npm run build'`,
      { cause },
    );
  }
  return loaded;
}

/** Symbolic name of a negative errno. */
export function errnoName(error: number): string {
  return getSystemErrorName(error);
}

/** A {@link PodwireError} for a failed native call. */
export function systemError(code: PodwireErrorCode, error: number, syscall: string, message: string): PodwireError {
  const errno = errnoName(error);
  return new PodwireError(code, `${message} (${syscall}: ${errno})`, { errno, syscall });
}

const RUNGS: readonly TunRung[] = ['none', 'csum', 'tso', 'uso'];

export interface TunQueue {
  readonly fd: number;
  readonly name: string;
  readonly index: number;
  readonly rung: TunRung;
}

/**
 * Opens one TUN queue; see `pw_tun_open`. The caller closes `fd`.
 * @throws PodwireError PERMISSION, DEVICE_IN_USE or DEVICE with what to do
 */
export function openTun(name: string, rung: TunRung, multiQueue: boolean, first: boolean): TunQueue {
  const result = addon().tunOpen(name, RUNGS.indexOf(rung), multiQueue, first);
  if (typeof result !== 'number') return { ...result, rung: RUNGS[result.rung]! };
  const errno = errnoName(result);
  if (errno === 'EPERM' || errno === 'EACCES') {
    throw systemError(
      'PERMISSION',
      result,
      'TUNSETIFF',
      `may not create the TUN device ${name}: run as root or with CAP_NET_ADMIN`,
    );
  }
  if (errno === 'EBUSY') {
    throw systemError(
      'DEVICE_IN_USE',
      result,
      'TUNSETIFF',
      `the device ${name} exists already: another agent runs on this host, or give another name with --device`,
    );
  }
  if (errno === 'ENOENT' || errno === 'ENXIO' || errno === 'ENODEV') {
    throw systemError(
      'DEVICE',
      result,
      'open',
      `cannot open /dev/net/tun: load the module with 'modprobe tun', or give the container the device /dev/net/tun`,
    );
  }
  throw systemError('DEVICE', result, 'TUNSETIFF', `cannot create the TUN device ${name}`);
}

/** Names of the counters in the order of their indices, as C has them. */
export function nativeCounterNames(): readonly string[] {
  return addon().layout().counters;
}

/** What a worker needs to run a port; plain data, safe to post. File descriptors are borrowed. */
export interface NativePortSpec {
  readonly tunFd: number;
  readonly udpFd: number;
  readonly wakeFd: number;
  /** -1 without a raw socket. */
  readonly icmp4Fd: number;
  readonly icmp6Fd: number;
  readonly sendFds: readonly number[];
  readonly tun: TunRung;
  /** 0 or 1: no UDP_SEGMENT. */
  readonly udpSegments: number;
  readonly batchCalls: boolean;
  readonly spin: SpinMode;
  readonly spinNs: number;
  /** What a received datagram must begin with, no bytes for bare packets; and the MTU that the TUN has. */
  readonly encapsulation: { readonly accepts: Uint8Array; readonly rawIp: boolean; readonly innerMtu: number };
  readonly memory: BatchMemory;
}

const SPIN: Readonly<Record<SpinMode, number>> = { off: 0, adaptive: 1, always: 2 };

/**
 * Makes the port of one worker, in that worker's thread.
 * @param nextHops the FIB's rows, 64 bytes each
 * @param reader this worker's epoch word in the FIB, one element
 */
export function createNativePort(spec: NativePortSpec, nextHops: Uint8Array, reader: Int32Array): PacketPort {
  const batch = openBatch(spec.memory);
  const engine = addon().engineCreate({
    tunFd: spec.tunFd,
    udpFd: spec.udpFd,
    wakeFd: spec.wakeFd,
    icmp4Fd: spec.icmp4Fd,
    icmp6Fd: spec.icmp6Fd,
    sendFds: Int32Array.from(spec.sendFds),
    virtioBytes: spec.tun === 'none' ? 0 : 10,
    tunTcp: spec.tun === 'tso' || spec.tun === 'uso',
    tunUdp: spec.tun === 'uso',
    udpSegments: spec.udpSegments,
    batchCalls: spec.batchCalls,
    spin: SPIN[spec.spin],
    spinNs: spec.spinNs,
    vtep: spec.encapsulation.accepts.length === 0 ? undefined : spec.encapsulation.accepts,
    rawIp: spec.encapsulation.rawIp,
    innerMtu: spec.encapsulation.innerMtu,
    meta: batch.meta,
    counters: batch.counters,
    peers: batch.peers,
    tunArena: batch.tun,
    udpArena: batch.udp,
    replyArena: batch.reply,
    nextHops,
    reader,
  });
  if (typeof engine === 'number') {
    throw systemError('ADDON', engine, 'engineCreate', 'the native engine refused its configuration');
  }
  return { batch, turn: engine.turn, destroy: engine.destroy };
}
