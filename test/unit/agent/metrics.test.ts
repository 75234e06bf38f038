import { describe, expect, test } from 'vitest';
import { createMetrics } from '../../../src/agent/metrics.js';
import { DEFAULT_MAX_PEERS } from '../../../src/agent/metrics/accounts.js';
import type { MetricsSource } from '../../../src/agent/metrics/exposition.js';
import { COUNTERS, KERNEL_DROPS } from '../../../src/dataplane/counters.js';
import { newLeaseCounts } from '../../../src/control/lease-counts.js';
import type { OverlayStatus } from '../../../src/index.js';
import { type MetricFamily, parseExposition, sampleOf } from '../../support/exposition.js';
import { engineStats, firewallStats, hostState, leaseOf, overlayStatus, peerStats, routed } from './fake-status.js';

function fixture(more: Partial<MetricsSource> = {}) {
  const state: { overlay: OverlayStatus | undefined } = { overlay: overlayStatus() };
  const metrics = createMetrics({ version: '1.2.3', overlay: () => state.overlay, ...more });
  const read = async (): Promise<ReadonlyMap<string, MetricFamily>> => parseExposition((await metrics.handler()).body);
  return { state, metrics, read };
}

describe('the text', () => {
  test('is the format that scrapers read, with a help text and a unit or _total in every name', async () => {
    const { metrics, read } = fixture();
    const { status, contentType } = await metrics.handler();
    expect([status, contentType]).toEqual([200, 'text/plain; version=0.0.4; charset=utf-8']);
    for (const { name, type, help } of (await read()).values()) {
      expect(help, name).not.toBe('');
      if (!name.startsWith('podwire_')) continue;
      expect(name.endsWith('_total'), `${name} is a ${type}`).toBe(type === 'counter');
      expect(name).not.toMatch(/_(ms|us|milliseconds|microseconds|kb|percent)(_|$)/);
    }
  });

  test('has the process, Node.js, the event loop and what this build is', async () => {
    const families = await fixture().read();
    for (const name of [
      'process_resident_memory_bytes',
      'process_cpu_seconds_total',
      'nodejs_eventloop_lag_p99_seconds',
    ])
      expect(families.has(name)).toBe(true);
    const labels = `backend="udp",node="${process.version}",version="1.2.3"`;
    expect(sampleOf(families, 'podwire_build_info', labels)).toBe(1);
  });

  test('is there before the overlay is', async () => {
    const { state, read } = fixture({ ready: () => false });
    state.overlay = undefined;
    const families = await read();
    expect(sampleOf(families, 'podwire_up')).toBe(0);
    expect(sampleOf(families, 'podwire_ready')).toBe(0);
    expect(families.get('podwire_drops_total')?.samples.size).toBe(0);
    state.overlay = overlayStatus();
    expect(sampleOf(await read(), 'podwire_up')).toBe(1);
  });

  test('is read once for those who ask at the same time', async () => {
    let readings = 0;
    const { metrics } = fixture({
      overlay: () => {
        readings++;
        return overlayStatus();
      },
    });
    const answers = await Promise.all([metrics.handler(), metrics.handler(), metrics.handler()]);
    expect(readings).toBe(1);
    expect(new Set(answers).size).toBe(1);
    await metrics.handler();
    expect(readings).toBe(2);
  });

  test('of a kernel backend has leases and no engine', async () => {
    const { state, read } = fixture();
    const probe = { state: 'ok' as const, rttUs: 250, lossPermille: 0 };
    const leases = [{ ...routed('10.42.8.0/24', '192.168.1.8'), probe, lastHeardMs: 2000 }];
    state.overlay = overlayStatus({ dataplane: undefined, leases });
    const families = await read();
    expect(families.get('podwire_packets_total')?.samples.size).toBe(0);
    expect(sampleOf(families, 'podwire_leases', 'state="routed"')).toBe(1);
    const labels = 'backend="udp",peer="192.168.1.8",state="routed",subnet="10.42.8.0/24",subnet6=""';
    expect(sampleOf(families, 'podwire_peer_info', labels)).toBe(1);
    expect(families.get('podwire_peer_packets_total')?.samples.size).toBe(0);
    expect(sampleOf(families, 'podwire_peer_probe_rtt_seconds', 'peer="192.168.1.8"')).toBe(0.00025);
    expect(sampleOf(families, 'podwire_peer_last_heard_seconds', 'peer="192.168.1.8"')).toBe(2);
  });
});

describe('counters', () => {
  test('every drop has its reason and every other counter its place, once', async () => {
    const names = [...Object.keys(COUNTERS), ...Object.keys(KERNEL_DROPS)];
    const totals = Object.fromEntries(names.map((name, i) => [name, 1000 + i]));
    const { state, read } = fixture();
    state.overlay = overlayStatus({ dataplane: engineStats(totals) });
    const families = await read();
    const drops = families.get('podwire_drops_total')!.samples;
    expect(drops.size).toBe(names.filter((name) => name.startsWith('drop')).length);
    expect(drops.get('{reason="no_route"}')).toBe(totals['dropNoRoute']);
    expect(drops.get('{reason="socket_overflow"}')).toBe(totals['dropSocketOverflow']);
    expect(drops.get('{reason="tun_queue"}')).toBe(totals['dropTunQueue']);
    const shown = [...families.values()].flatMap(({ samples }) => [...samples.values()]).filter((n) => n >= 1000);
    for (const value of Object.values(totals)) expect(shown.filter((n) => n === value)).toHaveLength(1);
  });

  test('of the lease, the store and the host', async () => {
    const { state, read } = fixture({
      store: () => ({ requests: 7, requestErrors: 1, requestSecondsTotal: 0.25, resyncs: 2, keepAlives: 4 }),
      operations: { renew: { done: 9, failed: 3, seconds: 1.5 } },
    });
    const counts = {
      ...newLeaseCounts(),
      acquired: 2,
      renewed: 9,
      renewFailures: 3,
      lost: 1,
      refusals: { ownAddress: 5 },
      notices: { conflict: 1 },
      acquiredAt: new Date(1_800_000_000_000),
    };
    const leases = [
      routed('10.42.8.0/24', '192.168.1.8'),
      { lease: leaseOf('10.9.0.0/24', '1.2.3.4'), state: 'refused' as const },
    ];
    const parts = { firewall: firewallStats, host: hostState };
    state.overlay = overlayStatus({ counts, leases, leaseHeld: false, ...parts });
    const families = await read();
    const expected: readonly [string, string, number | undefined][] = [
      ['podwire_lease_held', '', 0],
      ['podwire_lease_expiry_timestamp_seconds', '', 1_900_000_000],
      ['podwire_lease_acquired_timestamp_seconds', '', 1_800_000_000],
      ['podwire_lease_written_timestamp_seconds', '', undefined],
      ['podwire_lease_acquisitions_total', '', 2],
      ['podwire_lease_renewals_total', '', 9],
      ['podwire_lease_renew_failures_total', '', 3],
      ['podwire_lease_losses_total', '', 1],
      ['podwire_lease_refusals_total', 'reason="own_address"', 5],
      ['podwire_store_notices_total', 'kind="conflict"', 1],
      ['podwire_store_notices_total', 'kind="corrupt"', 0],
      ['podwire_leases', 'state="refused"', 1],
      ['podwire_leases', 'state="failed"', 0],
      ['podwire_store_up', '', 1],
      ['podwire_store_requests_total', '', 7],
      ['podwire_store_request_errors_total', '', 1],
      ['podwire_store_request_seconds_total', '', 0.25],
      ['podwire_store_resyncs_total', '', 2],
      ['podwire_store_reconnects_total', '', undefined],
      ['podwire_store_operations_total', 'operation="renew",result="failed"', 3],
      ['podwire_store_operations_total', 'operation="renew",result="done"', 9],
      ['podwire_store_operation_seconds_total', 'operation="renew"', 1.5],
      ['podwire_store_events_total', 'event="keep_alives"', 4],
      ['podwire_drift_repaired_total', 'kind="route"', 4],
      ['podwire_drift_repaired_total', 'kind="firewall"', 2],
      ['podwire_host_problems', 'kind="failing"', 1],
      ['podwire_host_monitor_overruns_total', '', 6],
      ['podwire_firewall_info', 'manager="nft",state="ok"', 1],
      ['podwire_worker_restarts_total', 'worker="1"', 2],
      ['podwire_workers', 'state="running"', 2],
    ];
    expect(expected.map(([name, labels]) => [name, labels, sampleOf(families, name, labels)])).toEqual(expected);
  });
});

describe('hosts', () => {
  const address = (i: number): string => `192.168.${i >> 8}.${i & 255}`;
  const network = (hosts: readonly number[], packets: (i: number) => number): OverlayStatus =>
    overlayStatus({
      leases: hosts.map((i) => routed(`10.${i >> 8}.${i & 255}.0/24`, address(i))),
      dataplane: engineStats(
        {},
        hosts.map((i) =>
          peerStats(address(i), { txPackets: packets(i), rxPackets: 2 * packets(i), lastHeardMs: 1500 }),
        ),
      ),
    });
  const packetsOf = (families: ReadonlyMap<string, MetricFamily>, peer: string): number | undefined =>
    sampleOf(families, 'podwire_peer_packets_total', `direction="egress",peer="${peer}"`);

  test('have their counts, path MTU, and when they were heard and probed', async () => {
    const { state, read } = fixture();
    const probe = { state: 'ok' as const, rttUs: 250, lossPermille: 100 };
    const one = { ...peerStats('192.168.1.8', { rxBytes: 77, txDrops: 3, lastHeardMs: 1500 }), probe };
    state.overlay = overlayStatus({ leases: [routed('10.42.8.0/24', one.address)], dataplane: engineStats({}, [one]) });
    const families = await read();
    const labels = 'peer="192.168.1.8"';
    expect(sampleOf(families, 'podwire_peer_bytes_total', `direction="ingress",${labels}`)).toBe(77);
    expect(sampleOf(families, 'podwire_peer_drops_total', `direction="egress",${labels}`)).toBe(3);
    expect(sampleOf(families, 'podwire_peer_path_mtu_bytes', labels)).toBe(1500);
    expect(sampleOf(families, 'podwire_peer_last_heard_seconds', labels)).toBe(1.5);
    expect(sampleOf(families, 'podwire_peer_probe_rtt_seconds', labels)).toBe(0.00025);
    expect(sampleOf(families, 'podwire_peer_probe_loss_ratio', labels)).toBe(0.1);
    expect(sampleOf(families, 'podwire_peer_probe_answering', labels)).toBe(1);
  });

  test('one with several next hops sends through all of them and receives once', async () => {
    const { state, read } = fixture();
    const rows = [8285, 8286].map((port) => peerStats('192.168.1.8', { port, txPackets: 5, rxPackets: 7 }));
    state.overlay = overlayStatus({ dataplane: engineStats({}, rows) });
    const families = await read();
    expect(packetsOf(families, '192.168.1.8')).toBe(10);
    expect(sampleOf(families, 'podwire_peer_packets_total', 'direction="ingress",peer="192.168.1.8"')).toBe(7);
  });

  test('beyond the limit are summed up, in a sum that never falls', async () => {
    const { state, read } = fixture({ maxPeers: 2 });
    state.overlay = network([1, 2, 3, 4], () => 10);
    let families = await read();
    expect([1, 2, 3].map((i) => packetsOf(families, address(i)))).toEqual([10, 10, undefined]);
    expect(packetsOf(families, 'other')).toBe(20);
    expect(sampleOf(families, 'podwire_peers', 'series="own"')).toBe(2);
    expect(sampleOf(families, 'podwire_peers', 'series="other"')).toBe(2);
    expect(families.get('podwire_peer_info')?.samples.size).toBe(2);
    // Host 1 goes, so host 3 moves up; 4 goes on in the sum, which keeps what 3 had put into it.
    state.overlay = network([2, 3, 4], () => 15);
    families = await read();
    expect([1, 2, 3, 4].map((i) => packetsOf(families, address(i)))).toEqual([undefined, 15, 15, undefined]);
    expect(packetsOf(families, 'other')).toBe(25);
    // Host 4 comes back and begins at zero.
    state.overlay = network([2, 3], () => 20);
    expect(packetsOf(await read(), 'other')).toBe(25);
    state.overlay = network([2, 3, 4], (i) => (i === 4 ? 1 : 20));
    expect(packetsOf(await read(), 'other')).toBe(26);
  });

  test('5,000 of them make a bounded text', async () => {
    const { state, read } = fixture();
    state.overlay = network(
      Array.from({ length: 5000 }, (_, i) => i),
      () => 1,
    );
    const families = await read();
    for (const { name, samples } of families.values())
      expect(samples.size, name).toBeLessThan(2 * DEFAULT_MAX_PEERS + 10);
    expect(packetsOf(families, 'other')).toBe(5000 - DEFAULT_MAX_PEERS);
  });

  test('that claim many leases do not make as many series', async () => {
    const { state, read } = fixture();
    const leases = Array.from({ length: 250 }, (_, i) => routed(`10.42.${i}.0/24`, '192.168.1.8'));
    state.overlay = overlayStatus({ leases });
    expect((await read()).get('podwire_peer_info')?.samples.size).toBeLessThan(5);
  });
});

describe('the reader of these tests', () => {
  const head = '# HELP a_total help\n# TYPE a_total counter\n';
  test.each([
    ['a sample without a family', 'b 1\n'],
    ['a value that is none', `${head}a_total x\n`],
    ['a counter below zero', `${head}a_total -1\n`],
    ['the same sample twice', `${head}a_total{x="1",y="2"} 1\na_total{y="2",x="1"} 1\n`],
    ['an open label', `${head}a_total{x="1} 1\n`],
    ['a raw quote', `${head}a_total{x="a"b"} 1\n`],
    ['a type after the samples', '# HELP a_total help\na_total 1\n# TYPE a_total counter\n'],
    ['an unknown type', '# HELP a_total help\n# TYPE a_total count\n'],
    ['a second family of one name', `${head}a_total 1\n${head}`],
    ['no end of the last line', `${head}a_total 1`],
  ])('refuses %s', (_, text) => {
    expect(() => parseExposition(text)).toThrow();
  });

  test('takes escapes, special numbers and histograms', () => {
    const families = parseExposition(
      `${head}a_total{x="\\"\\\\\\n"} 1e3\n# HELP h s\n# TYPE h histogram\nh_bucket{le="+Inf"} 3\nh_sum NaN\nh_count 3\n`,
    );
    expect(families.get('a_total')?.samples.get('{x="\\"\\\\\\n"}')).toBe(1000);
    expect(families.get('h')?.samples.get('_bucket{le="+Inf"}')).toBe(3);
  });
});
