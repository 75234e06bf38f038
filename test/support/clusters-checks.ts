import { expect } from 'vitest';
import type { AgentStatus } from '../../src/agent/status.js';
import { decodeLease, encodeLease } from '../../src/control/lease-codec.js';
import { leaseKey, tryParseLeaseKey } from '../../src/control/lease-key.js';
import type { Cluster, ClusterHost, Daemon, PingCount } from './clusters.js';
import { cli } from './process.js';

/** flanneld's constant, in seconds. */
const GRANTED = 86_400;
/** What flanneld warns about at every start. */
const USUAL = /no subnet found for key|no certificate provided/;

export async function statusOf(host: ClusterHost): Promise<AgentStatus> {
  const args = [cli, 'status', '--json', `--subnet-file=${host.subnetFile}`];
  return JSON.parse(await host.ns.ok(process.execPath, args)) as AgentStatus;
}

/**
 * What a daemon has complained about since its start: flanneld's error, warning and panic lines, podwire's error
 * lines. `expected` are the ones that belong to the test.
 */
export function complaints(host: ClusterHost, expected?: RegExp): string[] {
  const pattern = host.daemon?.kind === 'flanneld' ? /^[EWF]\d{4} |panic|goroutine/ : /"level":"(error|fatal)"/;
  return host.log
    .split('\n')
    .filter((line) => pattern.test(line) && !USUAL.test(line) && expected?.test(line) !== true);
}

/**
 * The leases are as flanneld would have left them: one for each host with a daemon, under its PublicIP and with a
 * canonical key, each on an etcd lease of 24 hours, and nothing else under `subnets`.
 */
export async function expectLeases(cluster: Cluster): Promise<void> {
  const leases = await cluster.leases();
  const members = cluster.hosts.filter(({ daemon }) => daemon !== undefined);
  expect(leases).toHaveLength(members.length);
  for (const lease of leases) {
    const subnets = tryParseLeaseKey(lease.name);
    expect(subnets && leaseKey(subnets)).toBe(lease.name);
    const { ttl = 0, granted } = (await cluster.etcd.timeToLive(lease)) ?? {};
    expect(granted).toBe(GRANTED);
    expect(ttl).toBeGreaterThan(GRANTED - 300);
  }
  for (const host of members) {
    const own = leases.find(({ publicIp }) => publicIp === host.underlay);
    expect(own?.name.split('&')[0]).toBe(`${await host.subnet()}-24`);
  }
}

/** What a host's lease tells its peers, as flanneld would have written it. */
export async function toldToPeers(cluster: Cluster, host: ClusterHost): Promise<string> {
  const own = (await cluster.leases()).find(({ publicIp }) => publicIp === host.underlay);
  return own === undefined ? 'no lease' : encodeLease(decodeLease(own.value).attributes);
}

/** Each pair that lost something, as `10.42.1.2 -> 10.42.2.2: 3 of 100`; pairs with a pod of `except` left out. */
export function losses(counts: Readonly<Record<string, PingCount>>, except: readonly ClusterHost[] = []): string[] {
  const left = except.flatMap(({ pod }) => pod?.addresses ?? []);
  return Object.entries(counts)
    .filter(([pair, { lost }]) => lost > 0 && !pair.split(' -> ').some((address) => left.includes(address)))
    .map(([pair, { lost, sent }]) => `${pair}: ${String(lost)} of ${String(sent)}`);
}

/** The longest time that a pair with a pod of `host` heard nothing, in milliseconds. */
export function longestGapMs(counts: Readonly<Record<string, PingCount>>, host: ClusterHost): number {
  const own = host.pod?.addresses ?? [];
  const gaps = Object.entries(counts).filter(([pair]) => pair.split(' -> ').some((address) => own.includes(address)));
  return Math.max(...gaps.map(([, { longestGapMs: gap }]) => gap));
}

/**
 * Ends a host's daemon and starts one, the same or the other, while everybody talks to everybody: the subnet stays,
 * all pods meet again, and pods of other hosts lose nothing.
 *
 * @returns the counts, for what the test has to say about the host itself.
 */
export async function exchange(
  cluster: Cluster,
  host: ClusterHost,
  signal: NodeJS.Signals,
  kind: Daemon | undefined = host.daemon?.kind,
): Promise<Record<string, PingCount>> {
  const before = await cluster.holders();
  const counts = await cluster.pinging(async () => {
    const ended = await host.stop(signal);
    expect([ended.code, ended.signal]).toEqual(signal === 'SIGKILL' ? [null, signal] : [0, null]);
    await host.join(kind ?? 'podwire');
    await cluster.connected();
  });
  expect(await cluster.holders()).toEqual(before);
  expect(losses(counts, [host])).toEqual([]);
  return counts;
}
