/** The metrics of single hosts. */
import { OTHER, type Counts, type PeerSeries } from './accounts.js';
import type { Family, Labels, Reading } from './family.js';

/** A host has one lease. One that claims many must not make as many series. */
const LEASES_A_HOST = 2;

function counts(name: Family['name'], help: string, egress: keyof Counts, ingress: keyof Counts): Family {
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
