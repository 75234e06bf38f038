/** Metrics of the user-space data plane: traffic, drops by reason, workers, path MTUs. */
import { COUNTERS, KERNEL_DROPS } from '../../dataplane/counters.js';
import type { DataplaneStats } from '../../index.js';
import { type Family, type Labels, single, snakeCase } from './family.js';

type Totals = DataplaneStats['totals'];
type TotalName = keyof Totals;

/** Samples that are one counter each. */
function counters(
  name: Family['name'],
  help: string,
  label: string,
  values: Readonly<Partial<Record<TotalName, string>>>,
): Family {
  return {
    type: 'counter',
    name,
    help,
    labels: [label],
    read: ({ overlay }, add) => {
      if (overlay?.dataplane === undefined) return;
      for (const [counter, value] of Object.entries(values)) {
        add(overlay.dataplane.totals[counter as TotalName], { [label]: value });
      }
    },
  };
}

function engineGauge(name: Family['name'], help: string, value: (stats: DataplaneStats) => number): Family {
  return single('gauge', name, help, ({ overlay }) => overlay?.dataplane && value(overlay.dataplane));
}

const NAMES = [...Object.keys(COUNTERS), ...Object.keys(KERNEL_DROPS)] as readonly TotalName[];

/** `dropNoRoute` as `no_route`, for all counters that begin so. */
function withPrefix(prefix: string): Partial<Record<TotalName, string>> {
  const found = NAMES.filter((name) => name.startsWith(prefix));
  return Object.fromEntries(found.map((name) => [name, snakeCase(name.slice(prefix.length))]));
}

const DIRECTIONS = { egress: 'from pods to the underlay', ingress: 'from the underlay to pods' } as const;
const DIRECTION_HELP = `direction: ${Object.entries(DIRECTIONS)
  .map(([name, meaning]) => `${name} is ${meaning}`)
  .join(', ')}.`;

const both = (egress: TotalName, ingress: TotalName): Partial<Record<TotalName, string>> => ({
  [egress]: 'egress',
  [ingress]: 'ingress',
});

const FAMILIES = {
  packets: both('egressPackets', 'ingressPackets'),
  bytes: both('egressBytes', 'ingressBytes'),
  superpackets: both('egressSuperpackets', 'ingressSuperpackets'),
  drops: withPrefix('drop'),
  fallbacks: withPrefix('fallback'),
  replies: withPrefix('replies'),
  spins: { spinHits: 'hit', spinMisses: 'miss' },
  calls: { sendCalls: 'send', receiveCalls: 'receive', tunReads: 'tun_read', tunWrites: 'tun_write', waits: 'poll' },
  messages: both('sendEntries', 'receiveMessages'),
} as const satisfies Record<string, Partial<Record<TotalName, string>>>;

/** Counters without a metric of their own, so that none is ever missing. */
const REST: Partial<Record<TotalName, string>> = Object.fromEntries(
  NAMES.filter((name) => !Object.values(FAMILIES).some((family) => name in family)).map((name) => [
    name,
    snakeCase(name),
  ]),
);

export const ENGINE_FAMILIES: readonly Family[] = [
  counters('podwire_packets_total', `Inner packets carried; ${DIRECTION_HELP}`, 'direction', FAMILIES.packets),
  counters('podwire_bytes_total', 'Bytes of those packets, without the outer headers.', 'direction', FAMILIES.bytes),
  counters(
    'podwire_superpackets_total',
    'Packets and superpackets carried: one decision each.',
    'direction',
    FAMILIES.superpackets,
  ),
  counters(
    'podwire_drops_total',
    'Packets that were not carried, each under exactly one reason; tun_queue and socket_overflow are the overflows of the ' +
      'kernel’s queues (the TUN, SO_RXQ_OVFL).',
    'reason',
    FAMILIES.drops,
  ),
  counters(
    'podwire_fallbacks_total',
    'Batches that the kernel refused and that went one by one; nothing is lost by it.',
    'kind',
    FAMILIES.fallbacks,
  ),
  counters('podwire_icmp_errors_total', 'ICMP errors for pods, by what became of them.', 'result', FAMILIES.replies),
  counters('podwire_worker_calls_total', 'System calls of the workers.', 'call', FAMILIES.calls),
  counters(
    'podwire_underlay_messages_total',
    'Messages sent and received, each one datagram or a run of them in one call.',
    'direction',
    FAMILIES.messages,
  ),
  counters('podwire_worker_spins_total', 'Short spins before a worker blocks, by result.', 'result', FAMILIES.spins),
  counters('podwire_engine_events_total', 'Other counters of the data plane, by name.', 'event', REST),
  {
    type: 'counter',
    name: 'podwire_worker_restarts_total',
    help: 'Times that a worker failed and was started again.',
    labels: ['worker'],
    read: ({ overlay }, add) => {
      for (const [index, { restarts }] of overlay?.dataplane?.workers.entries() ?? []) {
        add(restarts, { worker: String(index) });
      }
    },
  },
  {
    type: 'gauge',
    name: 'podwire_workers',
    help: 'Workers of the data plane by state.',
    labels: ['state'],
    read: ({ overlay }, add) => {
      if (overlay?.dataplane === undefined) return;
      for (const state of ['starting', 'running', 'restarting', 'stopped'] as const) {
        add(overlay.dataplane.workers.filter((worker) => worker.state === state).length, { state } satisfies Labels);
      }
    },
  },
  engineGauge('podwire_routes', 'Prefixes in the data plane’s table.', ({ routes }) => routes),
  engineGauge(
    'podwire_path_mtu_reduced_peers',
    'Hosts whose path takes less than their route allows.',
    ({ pathMtu }) => pathMtu.reduced,
  ),
  engineGauge(
    'podwire_path_mtu_silent_peers',
    'Hosts that answered no path MTU probe in the last round.',
    ({ pathMtu }) => pathMtu.silent,
  ),
  {
    type: 'counter',
    name: 'podwire_path_mtu_events_total',
    help: 'Path MTU probes sent, their answers, reports by others, and changes made.',
    labels: ['event'],
    read: ({ overlay }, add) => {
      if (overlay?.dataplane === undefined) return;
      const { probes, answers, reports, absurd, lowered, raised } = overlay.dataplane.pathMtu;
      for (const [event, count] of Object.entries({ probes, answers, reports, absurd, lowered, raised })) {
        add(count, { event });
      }
    },
  },
];
