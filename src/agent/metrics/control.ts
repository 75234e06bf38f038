/** Metrics of lease control and of what the agent keeps on the host. */
import type { LeaseCounts, LeaseState, OverlayStatus } from '../../index.js';
import { type Family, type Reading, seconds, single, snakeCase } from './family.js';

function count(name: Family['name'], help: string, value: (counts: LeaseCounts) => number): Family {
  return single('counter', name, help, ({ overlay }) => overlay && value(overlay.counts));
}

function overlayGauge(
  name: Family['name'],
  help: string,
  value: (overlay: OverlayStatus) => number | undefined,
): Family {
  return single('gauge', name, help, ({ overlay }) => overlay && value(overlay));
}

const LEASE_STATES: readonly LeaseState[] = ['routed', 'refused', 'ignored', 'failed'];

const LEASE_FAMILIES: readonly Family[] = [
  overlayGauge('podwire_lease_held', '1 while the store confirms our lease, 0 while it is lost or unconfirmed.', (o) =>
    Number(o.leaseHeld),
  ),
  overlayGauge(
    'podwire_lease_expiry_timestamp_seconds',
    'Unix time at which our lease ends unless it is renewed; absent for a reservation.',
    (overlay) => seconds(overlay.lease.expiresAt),
  ),
  overlayGauge('podwire_lease_acquired_timestamp_seconds', 'Unix time at which our lease was acquired.', (overlay) =>
    seconds(overlay.counts.acquiredAt),
  ),
  overlayGauge(
    'podwire_lease_written_timestamp_seconds',
    'Unix time at which our lease was last acquired or renewed.',
    (overlay) => seconds(overlay.counts.writtenAt),
  ),
  count('podwire_lease_acquisitions_total', 'Leases acquired, the first one included.', (c) => c.acquired),
  count('podwire_lease_acquire_failures_total', 'Tries to acquire a lease that failed.', (c) => c.acquireFailures),
  count('podwire_lease_renewals_total', 'Renewals of our lease.', (c) => c.renewed),
  count('podwire_lease_renew_failures_total', 'Renewals of our lease that failed.', (c) => c.renewFailures),
  count('podwire_lease_losses_total', 'Times that our lease was gone or taken in the store.', (c) => c.lost),
  count('podwire_lease_subnet_changes_total', 'Times that we had to move to another subnet.', (c) => c.subnetChanges),
  {
    type: 'gauge',
    name: 'podwire_leases',
    help: 'Leases of other hosts by what became of them.',
    labels: ['state'],
    read: ({ overlay }, add) => {
      if (overlay === undefined) return;
      for (const state of LEASE_STATES) {
        add(overlay.leases.filter((lease) => lease.state === state).length, { state });
      }
    },
  },
  {
    type: 'counter',
    name: 'podwire_lease_refusals_total',
    help: 'Leases of other hosts that were refused because they make no sense, by reason.',
    labels: ['reason'],
    read: ({ overlay }, add) => {
      for (const [reason, value] of Object.entries(overlay?.counts.refusals ?? {})) {
        add(value, { reason: snakeCase(reason) });
      }
    },
  },
  {
    type: 'counter',
    name: 'podwire_route_changes_total',
    help: 'Routes to other hosts that were set and withdrawn.',
    labels: ['change'],
    read: ({ overlay }, add) => {
      if (overlay === undefined) return;
      add(overlay.counts.routesAdded, { change: 'set' });
      add(overlay.counts.routesRemoved, { change: 'withdrawn' });
    },
  },
  {
    type: 'counter',
    name: 'podwire_store_notices_total',
    help: 'What the store noticed: foreign and corrupt entries, conflict (another live host uses our identity), degraded.',
    labels: ['kind'],
    read: ({ overlay }, add) => {
      if (overlay === undefined) return;
      for (const kind of ['foreign', 'corrupt', 'conflict', 'degraded'] as const) {
        add(overlay.counts.notices[kind] ?? 0, { kind });
      }
    },
  },
];

/** Names of LeaseStore.metrics with metrics of their own; the rest are events. */
const STORE_COUNTERS = {
  requests: ['podwire_store_requests_total', 'Requests to the store.'],
  requestErrors: ['podwire_store_request_errors_total', 'Requests to the store that failed.'],
  requestSecondsTotal: [
    'podwire_store_request_seconds_total',
    'Time that requests to the store took; over podwire_store_requests_total it is their mean latency.',
  ],
  resyncs: ['podwire_store_resyncs_total', 'Times that all leases were read again because changes were missed.'],
  reconnects: ['podwire_store_reconnects_total', 'Watches that were begun again.'],
  skippedEvents: [
    'podwire_store_skipped_events_total',
    'Entries of the store that could not be read and were skipped.',
  ],
} as const satisfies Readonly<Record<string, readonly [Family['name'], string]>>;

const STORE_FAMILIES: readonly Family[] = [
  overlayGauge('podwire_store_up', '1 while watch and renewals work, 0 while one of them is tried again.', (overlay) =>
    Number(overlay.store.ok && overlay.store.tableOf === undefined),
  ),
  single(
    'gauge',
    'podwire_lease_table_timestamp_seconds',
    'Unix time of the saved lease table that is followed while the store is away since the start; absent otherwise.',
    ({ overlay }) => seconds(overlay?.store.tableOf),
  ),
  count(
    'podwire_store_snapshots_total',
    'Snapshots of all leases: one at the start, one after each break.',
    (c) => c.snapshots,
  ),
  count('podwire_store_watch_failures_total', 'Watches of the store that broke.', (c) => c.watchFailures),
  ...Object.entries(STORE_COUNTERS).map(([key, [name, help]]) =>
    single('counter', name, help, ({ store }) => store[key]),
  ),
  {
    type: 'counter',
    name: 'podwire_store_operations_total',
    help: 'What the agent asked of the store (network, acquire, renew, release), by result.',
    labels: ['operation', 'result'],
    read: ({ operations }, add) => {
      for (const [operation, { done, failed }] of Object.entries(operations)) {
        add(done, { operation, result: 'done' });
        add(failed, { operation, result: 'failed' });
      }
    },
  },
  {
    type: 'counter',
    name: 'podwire_store_operation_seconds_total',
    help: 'Time that these took, tries within the store included; over podwire_store_operations_total it is their mean.',
    labels: ['operation'],
    read: ({ operations }, add) => {
      for (const [operation, { seconds: taken }] of Object.entries(operations)) add(taken, { operation });
    },
  },
  {
    type: 'counter',
    name: 'podwire_store_events_total',
    help: 'Other counters of the store, by name.',
    labels: ['event'],
    read: ({ store }, add) => {
      for (const [key, value] of Object.entries(store)) {
        if (!(key in STORE_COUNTERS)) add(value, { event: snakeCase(key) });
      }
    },
  },
];

const host = ({ overlay }: Reading): Partial<OverlayStatus> => overlay ?? {};

const HOST_FAMILIES: readonly Family[] = [
  single('gauge', 'podwire_mtu_bytes', 'MTU of the overlay: what pods get.', ({ overlay }) => overlay?.mtu),
  {
    type: 'counter',
    name: 'podwire_drift_repaired_total',
    help: 'Changes of the host by others that were put right, by kind; firewall counts checks that found one.',
    labels: ['kind'],
    read: (reading, add) => {
      const { host: guard, firewall } = host(reading);
      for (const [kind, value] of Object.entries(guard?.driftRepaired ?? {})) add(value, { kind });
      if (firewall !== undefined) add(firewall.repairs, { kind: 'firewall' });
    },
  },
  {
    type: 'gauge',
    name: 'podwire_host_problems',
    help: 'What of the host is not as it should be: failing cannot be put right, fought is undone again and again, foreign is not ours to put right.',
    labels: ['kind'],
    read: (reading, add) => {
      const { host: guard } = host(reading);
      if (guard === undefined) return;
      add(guard.failing.length, { kind: 'failing' });
      add(guard.fought.length, { kind: 'fought' });
      add(guard.problems.length, { kind: 'foreign' });
    },
  },
  {
    type: 'counter',
    name: 'podwire_host_checks_total',
    help: 'Comparisons of the host with what it should be.',
    labels: ['part'],
    read: (reading, add) => {
      const { host: guard, firewall } = host(reading);
      if (guard !== undefined) add(guard.checks, { part: 'links_and_routes' });
      if (firewall !== undefined) add(firewall.checks, { part: 'firewall' });
    },
  },
  single(
    'counter',
    'podwire_firewall_failures_total',
    'Checks of the firewall rules that failed.',
    (reading) => host(reading).firewall?.failures,
  ),
  {
    type: 'gauge',
    name: 'podwire_firewall_info',
    help: 'Always 1: who keeps the firewall rules, and their state.',
    labels: ['manager', 'state'],
    read: (reading, add) => {
      const { firewall } = host(reading);
      if (firewall !== undefined) add(1, { manager: firewall.manager, state: firewall.state });
    },
  },
  single(
    'counter',
    'podwire_dataplane_reopened_total',
    'Times that the data plane was opened again: its device was removed, or the underlay has changed.',
    (reading) => host(reading).host?.reopened,
  ),
  single(
    'counter',
    'podwire_host_monitor_restarts_total',
    'Restarts of the kernel event listener.',
    (reading) => host(reading).host?.monitor.restarts,
  ),
  single(
    'counter',
    'podwire_host_monitor_overruns_total',
    'Times that the kernel dropped events for us.',
    (reading) => host(reading).host?.monitor.overruns,
  ),
];

const AGENT_FAMILIES: readonly Family[] = [
  {
    type: 'gauge',
    name: 'podwire_build_info',
    help: 'Always 1: the versions of podwire and Node.js, and the backend.',
    labels: ['version', 'node', 'backend'],
    read: ({ version, overlay }, add) =>
      add(1, { version, node: process.version, backend: overlay?.network.backend.type ?? '' }),
  },
  single('gauge', 'podwire_up', '1 once this host has joined the overlay, 0 while the agent starts.', ({ overlay }) =>
    Number(overlay !== undefined),
  ),
  single('gauge', 'podwire_ready', '1 while /readyz answers that the agent is ready.', ({ ready }) =>
    ready === undefined ? undefined : Number(ready),
  ),
];

export const CONTROL_FAMILIES: readonly Family[] = [
  ...AGENT_FAMILIES,
  ...LEASE_FAMILIES,
  ...STORE_FAMILIES,
  ...HOST_FAMILIES,
];
