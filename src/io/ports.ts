/**
 * The seam between the engine's decisions and the world: one {@link PacketPort} a worker, over a TUN queue and UDP
 * sockets (native.ts) or over a simulated network (memory.ts). Both pass the same contract suite.
 */
import type { Batch } from './batch.js';

export interface PacketPort {
  /** The tables and arenas of this port. */
  readonly batch: Batch;
  /**
   * One turn: carries out the verdicts that stand in the rows of the last turn (egress rows are sent, ingress rows are
   * written to the TUN, replies leave), then takes in what waits and, when nothing does, blocks for at most
   * `timeoutMs`. A wake-up ends the wait early.
   *
   * @returns egress rows in bits 0..15, ingress rows in bits 16..30; both may be 0; negative: -errno, the port is dead
   */
  turn(timeoutMs: number): number;
  /** Frees what the port holds. It does not close the file descriptors it was given. */
  destroy(): void;
}

/** What a port must know of a wire format (src/encap). The header itself lies in the next hops' rows. */
export interface PortEncapsulation {
  /** Bytes in front of the inner packet, within the datagram. */
  readonly headerBytes: number;
  /** Whether congestion marks are carried between outer and inner header. */
  readonly carriesEcn: boolean;
  /** The counter in which a received datagram ends that holds no packet for this host; undefined when it does. */
  fault(datagram: Uint8Array): string | undefined;
}

/** How a worker waits when nothing is there. */
export type SpinMode = 'off' | 'adaptive' | 'always';
/** Offload rungs of a TUN, best first; every rung includes the ones after it. */
export type TunRung = 'uso' | 'tso' | 'csum' | 'none';
/** How datagrams cross the kernel's border: UDP_SEGMENT/UDP_GRO, batched calls, one call each. */
export type UdpRung = 'gso' | 'mmsg' | 'single';

/** What was negotiated with the kernel, for status and for tests. */
export interface Capabilities {
  readonly tun: TunRung;
  readonly udp: UdpRung;
  /** Most datagrams in one UDP_SEGMENT send: 127, 64, or 1 without. */
  readonly udpSegments: number;
  readonly workers: number;
  /** Checksum variant that was chosen for this processor: avx2, neon or portable. */
  readonly checksum: string;
  /** Whether ICMP errors leave through a raw socket of the host; else through the TUN. */
  readonly rawIcmp: boolean;
}
