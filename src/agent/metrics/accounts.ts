/**
 * Which hosts get series of their own, and what they say.
 *
 * Hosts keep their place for as long as they are there. What the rest carries is summed up by differences, so that the
 * sum never falls when a host leaves or moves up to a place of its own.
 */
import type { OverlayStatus, PeerStats } from '../../index.js';

/** What every host counts; only ever grows while the host is there. */
const COUNTS = ['txPackets', 'txBytes', 'rxPackets', 'rxBytes', 'txDrops', 'rxDrops'] as const;
export type Counts = Record<(typeof COUNTS)[number], number>;

export interface PeerSeries extends Readonly<Counts> {
  /** Underlay address, or `other`. */
  readonly peer: string;
  /** False where the kernel carries the packets: then nothing is counted. */
  readonly isCounted: boolean;
  /** Bytes of outer packet; 0 where it is not known. */
  readonly pathMtu: number;
  readonly lastHeardMs?: number;
  readonly probe?: NonNullable<PeerStats['probe']>;
}

export interface PeerReading {
  readonly series: readonly PeerSeries[];
  /** Hosts with series of their own; those of kernel backends count nothing. */
  readonly named: ReadonlySet<string>;
  /** Hosts without. */
  readonly unnamed: number;
}

/** Hosts with series of their own, unless the agent is told otherwise. */
export const DEFAULT_MAX_PEERS = 250;

export const OTHER = 'other';

export class PeerAccounts {
  readonly #max: number;
  readonly #named = new Set<string>();
  #unnamed = new Map<string, Counts>();
  readonly #other = zero();
  #hasOther = false;

  constructor(max: number) {
    this.#max = max;
  }

  /** The hosts of this moment. */
  update(overlay: OverlayStatus | undefined): PeerReading {
    if (overlay === undefined) return { series: [], named: new Set(), unnamed: 0 };
    const present = byAddress(overlay);
    for (const address of this.#named) if (!present.has(address)) this.#named.delete(address);
    for (const address of present.keys()) {
      if (this.#named.size >= this.#max) break;
      this.#named.add(address);
    }
    const series: PeerSeries[] = [];
    const unnamed = new Map<string, Counts>();
    for (const [address, one] of present) {
      if (this.#named.has(address)) {
        series.push(one);
        continue;
      }
      const now = one;
      const before = this.#unnamed.get(address);
      // Fewer than before: it left and came back between two readings.
      for (const name of COUNTS) {
        const known = before?.[name] ?? 0;
        this.#other[name] += now[name] >= known ? now[name] - known : now[name];
      }
      unnamed.set(address, now);
    }
    this.#unnamed = unnamed;
    this.#hasOther ||= unnamed.size > 0;
    if (this.#hasOther && overlay.dataplane !== undefined) {
      series.push({ peer: OTHER, ...this.#other, isCounted: true, pathMtu: 0 });
    }
    return { series, named: this.#named, unnamed: unnamed.size };
  }
}

function zero(): Counts {
  return { txPackets: 0, txBytes: 0, rxPackets: 0, rxBytes: 0, txDrops: 0, rxDrops: 0 };
}

/** Hosts by underlay address: those with leases first, and those that have routes only. */
function byAddress({ dataplane, leases }: OverlayStatus): Map<string, PeerSeries> {
  const found = new Map<string, PeerSeries>();
  for (const { lease, probe, lastHeardMs } of leases) {
    const peer = lease.attributes.publicIp.toString();
    found.set(peer, {
      peer,
      ...zero(),
      isCounted: false,
      pathMtu: 0,
      ...(probe === undefined ? {} : { probe }),
      ...(lastHeardMs === undefined ? {} : { lastHeardMs }),
    });
  }
  for (const peer of dataplane?.peers ?? []) {
    const { address, pathMtu, lastHeardMs, probe } = peer;
    const same = found.get(address);
    found.set(address, {
      ...same,
      peer: address,
      isCounted: true,
      // A host with several next hops sends through each, and is counted once for what it receives.
      txPackets: (same?.txPackets ?? 0) + peer.txPackets,
      txBytes: (same?.txBytes ?? 0) + peer.txBytes,
      txDrops: (same?.txDrops ?? 0) + peer.txDrops,
      rxPackets: peer.rxPackets,
      rxBytes: peer.rxBytes,
      rxDrops: peer.rxDrops,
      pathMtu,
      ...(lastHeardMs === undefined ? {} : { lastHeardMs }),
      ...(probe === undefined ? {} : { probe }),
    });
  }
  return found;
}
