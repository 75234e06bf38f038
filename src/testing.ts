/**
 * For tests of and on podwire: a simulated underlay with loss, reordering, duplication and path MTUs, hosts that run
 * the real decisions over it in virtual time, and the contract that every packet port passes. Needs no test runner, no
 * kernel and no addon.
 */
export { MemoryNetwork, seededRandom } from './io/memory-network.js';
export type { Datagram, Endpoint, Faults, MemoryNetworkOptions, NetworkStats } from './io/memory-network.js';
export { openEncapsulation } from './encap/open.js';
export type { Encapsulation, EncapsulationSpec } from './encap/encapsulation.js';
export { MemoryPort } from './io/memory.js';
export type { MemoryPortSpec } from './io/memory.js';
export type { PacketPort } from './io/ports.js';
export type { Offload } from './io/segmentation.js';
export { parseHeaders, segment, superpacketHeader } from './io/segmentation.js';
export { COUNTER_NAMES } from './dataplane/counters.js';
export type { CounterName } from './dataplane/counters.js';
export { VirtualHost } from './testing/virtual-host.js';
export type { PeerCounts, PortResources, VirtualHostOptions } from './testing/virtual-host.js';
export { packet, reassemble, superpacket, withPartialChecksum } from './testing/packets.js';
export type { PacketFields } from './testing/packets.js';
export { packetPortContract } from './testing/port-contract.js';
export type { ContractCase } from './testing/port-contract.js';
export { LEASES, LINK_FORMATS, LINK_PORT, openMemoryLink, until } from './testing/port-link.js';
export type { LinkEnd, LinkFormat, OpenLink, PortLink } from './testing/port-link.js';
export { ManualClock } from './control/clock.js';
export type { Clock } from './control/clock.js';
export { memoryStore, MemoryStoreServer } from './control/stores/memory.js';
export type {
  MemoryFault,
  MemoryOperation,
  MemoryStoreOptions,
  MemoryStoreServerOptions,
} from './control/stores/memory.js';
