import { COUNTERS, KERNEL_DROPS } from '../../../src/dataplane/counters.js';
import { newLeaseCounts } from '../../../src/control/lease-counts.js';
import { parseNetworkConfig } from '../../../src/control/network-config.js';
import type { FirewallStats } from '../../../src/host/firewall/firewall.js';
import type { HostState } from '../../../src/control/host-watch.js';
import type { DataplaneStats, Lease, OverlayLease, OverlayStatus, PeerStats } from '../../../src/index.js';
import { Address, Prefix } from '../../../src/net/prefix.js';

export function peerStats(address: string, more: Partial<PeerStats> = {}): PeerStats {
  const zero = { txPackets: 0, txBytes: 0, rxPackets: 0, rxBytes: 0, txDrops: 0, rxDrops: 0 };
  return { address, port: 8285, ...zero, pathMtu: 1500, routes: 1, ...more };
}

/** Engine statistics with every counter there is, each 0 unless given. */
export function engineStats(
  totals: Partial<DataplaneStats['totals']> = {},
  peers: readonly PeerStats[] = [],
): DataplaneStats {
  const names = [...Object.keys(COUNTERS), ...Object.keys(KERNEL_DROPS)];
  const zero = Object.fromEntries(names.map((name) => [name, 0])) as DataplaneStats['totals'];
  return {
    totals: { ...zero, ...totals },
    workers: [
      { state: 'running', restarts: 0, counters: {} },
      { state: 'running', restarts: 2, counters: {} },
    ],
    peers,
    routes: peers.length,
    pathMtu: {
      probing: 'on',
      reason: undefined,
      watched: peers.length,
      reduced: 0,
      silent: 0,
      probes: 5,
      answers: 5,
      reports: 0,
      absurd: 0,
      lowered: 0,
      raised: 0,
    },
    offenders: {},
  };
}

export function leaseOf(subnet: string, publicIp: string, more: Partial<Lease> = {}): Lease {
  return {
    subnet: Prefix.parse(subnet),
    attributes: { publicIp: Address.parse(publicIp), backendType: '' },
    ...more,
  };
}

export function routed(subnet: string, publicIp: string): OverlayLease {
  return { lease: leaseOf(subnet, publicIp), state: 'routed' };
}

export const firewallStats: FirewallStats = {
  manager: 'nft',
  why: 'nft works',
  state: 'ok',
  masquerade: true,
  forward: true,
  rules: ['table ip podwire'],
  admittedIn: [],
  watch: 'events',
  resyncMs: 5000,
  checks: 8,
  repairs: 2,
  failures: 0,
};

export const hostState: HostState = {
  driftRepaired: { link: 0, address: 0, route: 4, neighbour: 0, fdb: 0, switch: 0 },
  lastRepair: undefined,
  failing: ['link flannel0'],
  fought: [],
  checks: 11,
  monitor: { running: true, restarts: 0, overruns: 6 },
  problems: [],
  reopened: 3,
};

/** What a healthy overlay says, with changes. */
export function overlayStatus(more: Partial<OverlayStatus> = {}): OverlayStatus {
  return {
    network: parseNetworkConfig('{"Network":"10.42.0.0/16","Backend":{"Type":"udp"}}'),
    interface: {
      name: 'eth0',
      index: 2,
      mtu: 1500,
      address: Address.parse('192.168.1.5'),
      publicIp: Address.parse('192.168.1.5'),
      why: 'it has the default route',
    } as OverlayStatus['interface'],
    lease: leaseOf('10.42.7.0/24', '192.168.1.5', { expiresAt: new Date(1_900_000_000_000) }),
    leaseHeld: true,
    device: 'flannel0',
    mtu: 1472,
    subnetFile: undefined,
    leases: [],
    counts: { ...newLeaseCounts(), refusals: {} },
    host: hostState,
    facts: {},
    dataplane: engineStats(),
    store: { description: 'memory', ok: true },
    ...more,
  };
}
