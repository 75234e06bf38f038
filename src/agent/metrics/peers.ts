/**
 * Which hosts get series of their own, and what they say.
 *
 * Hosts keep their place for as long as they are there. What the rest carries is summed up by differences, so that the
 * sum never falls when a host leaves or moves up to a place of its own.
 */
import type { OverlayStatus, PeerStats } from '../../index.js';
import type { Family, Labels, Reading } from './family.js';

/** What every host counts; only ever grows while the host is there. */
const COUNTS = ['txPackets', 'txBytes', 'rxPackets', 'rxBytes', 'txDrops', 'rxDrops'] as const;
type Counts = Record<(typeof COUNTS)[number], number>;

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

export const OTHER = 'other';

/** A host has one lease. One that claims many must not make as many series. */
const LEASES_A_HOST = 2;

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

function counts(
  name: Family['name'],
  help: string,
  egress: (typeof COUNTS)[number],
  ingress: (typeof COUNTS)[number],
): Family {
  return {
    type: 'counter',
    name,
    help: `${help}; peer="${OTHER}" sums up hosts without series of their own.`,
    labels: ['peer', 'direction'],
    read: ({ peers }, add) => {
      for (const one of peers.series) {
        if (!one.isCounted) continue;
        add(one[egress], { peer: one.peer, direction: 'egress' });
        add(one[ingress], { peer: one.peer, direction: 'ingress' });
      }
    },
  };
}

function gauge(name: Family['name'], help: string, value: (peer: PeerSeries) => number | undefined): Family {
  return {
    type: 'gauge',
    name,
    help,
    labels: ['peer'],
    read: ({ peers }, add) => {
      for (const one of peers.series) {
        const found = one.peer === OTHER ? undefined : value(one);
        if (found !== undefined) add(found, { peer: one.peer });
      }
    },
  };
}

export const PEER_FAMILIES: readonly Family[] = [
  counts('podwire_peer_packets_total', 'Inner packets sent to and delivered from a host', 'txPackets', 'rxPackets'),
  counts('podwire_peer_bytes_total', 'Bytes of those packets, without the outer headers', 'txBytes', 'rxBytes'),
  counts(
    'podwire_peer_drops_total',
    'Packets for a host that were not sent, and packets from it that were not delivered',
    'txDrops',
    'rxDrops',
  ),
  gauge('podwire_peer_path_mtu_bytes', 'Largest outer packet that passes on the way to a host.', ({ pathMtu }) =>
    pathMtu > 0 ? pathMtu : undefined,
  ),
  gauge(
    'podwire_peer_last_heard_seconds',
    'Time since a packet of the host was delivered; absent when none was.',
    ({ lastHeardMs }) => (lastHeardMs === undefined ? undefined : lastHeardMs / 1000),
  ),
  gauge('podwire_peer_probe_answering', '1 when the host answers probes, 0 when it did and stopped.', ({ probe }) =>
    probe === undefined || probe.state === 'no-probe' ? undefined : Number(probe.state === 'ok'),
  ),
  gauge('podwire_peer_probe_rtt_seconds', 'Round trip of the latest probes of a host.', ({ probe }) =>
    probe?.state !== 'ok' || probe.rttUs === undefined ? undefined : probe.rttUs / 1e6,
  ),
  gauge('podwire_peer_probe_loss_ratio', 'Share of the latest probes without an answer, 0 to 1.', ({ probe }) =>
    probe === undefined || probe.state === 'no-probe' ? undefined : probe.lossPermille / 1000,
  ),
  {
    type: 'gauge',
    name: 'podwire_peers',
    help: 'Hosts that hold a lease or have a route; series="own" have series of their own.',
    labels: ['series'],
    read: ({ overlay, peers }, add) => {
      if (overlay === undefined) return;
      add(peers.named.size, { series: 'own' });
      add(peers.unnamed, { series: OTHER });
    },
  },
  {
    type: 'gauge',
    name: 'podwire_peer_info',
    help: 'Always 1: the subnets of a host with series of its own, and what became of its lease.',
    labels: ['peer', 'subnet', 'subnet6', 'backend', 'state'],
    read: (reading, add) => {
      for (const labels of infoOf(reading)) add(1, labels);
    },
  },
];

function* infoOf({ overlay, peers }: Reading): Generator<Labels> {
  let room = peers.named.size * LEASES_A_HOST;
  for (const { lease, state } of overlay?.leases ?? []) {
    const peer = lease.attributes.publicIp.toString();
    if (!peers.named.has(peer) || room-- <= 0) continue;
    yield {
      peer,
      subnet: lease.subnet.toString(),
      subnet6: lease.subnet6?.toString() ?? '',
      backend: lease.attributes.backendType || 'udp',
      state,
    };
  }
}
