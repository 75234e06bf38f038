/**
 * IP in IP (RFC 2003, protocol 4), as flannel's `ipip` backend has the kernel speak it: an outer IPv4 header and the
 * inner IPv4 packet right behind it. There are no ports, so a flow's packets look alike to the underlay's load
 * balancers, and nothing tells one network on a host from another. IPv6 inside would be protocol 41 and is not carried.
 */
import { bareEncapsulation } from './bare.js';
import type { Encapsulation } from './encapsulation.js';

export const ipipEncapsulation: Encapsulation = bareEncapsulation({
  name: 'ipip',
  carrier: 'ip',
  defaultPort: 0,
  carriesEcn: true,
});
