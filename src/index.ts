/**
 * podwire: a userspace pod-network data plane, compatible with flannel. This is the whole public API; `podwire/testing`
 * has the in-memory link for tests.
 */
export { PodwireError } from './errors.js';
export type { PodwireErrorCode, PodwireErrorOptions } from './errors.js';
export { Address, MacAddress, Prefix } from './net/prefix.js';
export type { Family } from './net/prefix.js';
export type { OverlayMtu } from './net/mtu.js';

export { Dataplane } from './dataplane/dataplane.js';
export type { DataplaneOptions, DataplaneStats, PeerStats } from './dataplane/dataplane.js';
export type { Logger } from './dataplane/logger.js';
export type { PeerProbe } from './dataplane/probes.js';
export type { PathMtuOptions } from './dataplane/pmtu.js';
export type { NextHop, RouteTable } from './fib/fib.js';
export type { Capabilities } from './io/ports.js';

export { joinOverlay } from './control/join.js';
export type { FirewallOptions } from './control/firewall.js';
export type { FirewallStats } from './host/firewall/firewall.js';
export type { OverlayOptions } from './control/join.js';
export type { HostState } from './control/host-watch.js';
export type { LeaseState, Overlay, OverlayLease, OverlayStatus } from './control/overlay.js';
export type { DataplaneChoices } from './control/backends/backend.js';
export type { InterfaceChoice, SelectedInterface } from './host/select-interface.js';

export { directoryStore } from './control/stores/directory.js';
export type { DirectoryStoreOptions } from './control/stores/directory.js';
export { etcdStore } from './control/stores/etcd.js';
export type { EtcdStoreOptions } from './control/stores/etcd.js';
export type {
  AcquireRequest,
  Lease,
  LeaseAttributes,
  LeaseChange,
  LeaseStore,
  LeaseSubnets,
  StoreAdmin,
  StoreMetrics,
  StoreNotice,
} from './control/lease.js';
export type { LeaseCounts } from './control/lease-counts.js';
export type { StoreState } from './control/lease-keeper.js';
export type { BackendConfig, NetworkConfig } from './control/network-config.js';
