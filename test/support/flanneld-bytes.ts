import { expect } from 'vitest';
import { decodeLease, encodeLease } from '../../src/control/lease-codec.js';
import { leaseKey, parseLeaseKey } from '../../src/control/lease-key.js';
import { parseNetworkConfig } from '../../src/control/network-config.js';
import { formatSubnetEnv, parseDotenv } from '../../src/host/subnet-env.js';
import { Prefix } from '../../src/net/prefix.js';

/** What one flanneld on 10.77.0.1 and fd77::1, underlay MTU 1500, wrote for a network config. */
export interface FlanneldBytes {
  readonly name: string;
  readonly config: string;
  /** The lease's key without the path. */
  readonly key: string;
  readonly value: string;
  readonly subnetEnv: string;
}

/** The configs that are recorded, one for each form a lease or a subnet file can have. */
export const RECORDED: Readonly<Record<string, unknown>> = {
  udp: { Network: '10.42.0.0/16', Backend: { Type: 'udp' } },
  'no backend, short subnets': { Network: '10.42.0.0/16', SubnetLen: 26 },
  'udp, dual stack': { Network: '10.42.0.0/16', EnableIPv6: true, IPv6Network: 'fd42::/48', Backend: { Type: 'udp' } },
  vxlan: { Network: '10.42.0.0/16', Backend: { Type: 'vxlan' } },
  'vxlan, options': { Network: '10.42.0.0/20', Backend: { Type: 'VXLAN', VNI: 4097, Port: 4789, MTU: 1400 } },
  'vxlan, dual stack': {
    Network: '10.42.0.0/16',
    EnableIPv6: true,
    IPv6Network: '2001:db8:42::/56',
    Backend: { Type: 'vxlan' },
  },
  'host-gw': { Network: '10.42.0.0/16', Backend: { Type: 'host-gw' } },
  'host-gw, dual stack': {
    Network: '10.42.0.0/16',
    EnableIPv6: true,
    IPv6Network: 'fd42:0:0:4200::/56',
    Backend: { Type: 'host-gw' },
  },
  alloc: { Network: '10.42.0.0/16', Backend: { Type: 'alloc' } },
  extension: { Network: '10.42.0.0/16', Backend: { Type: 'extension', PreStartupCommand: 'echo a<b>&"c"' } },
};

/** FLANNEL_MTU by recorded name. */
const MTU: Readonly<Record<string, number>> = {
  udp: 1472,
  'no backend, short subnets': 1472,
  'udp, dual stack': 1472,
  'vxlan, options': 1350,
  vxlan: 1450,
  'vxlan, dual stack': 1450,
};

/** podwire reads these bytes for what they mean, and would have written the same ones. */
export function expectPodwireAgrees(bytes: FlanneldBytes): void {
  const network = parseNetworkConfig(bytes.config);
  const subnets = parseLeaseKey(bytes.key);
  expect(leaseKey(subnets)).toBe(bytes.key);

  const { attributes } = decodeLease(bytes.value);
  expect(attributes.publicIp.toString()).toBe('10.77.0.1');
  expect(encodeLease(attributes)).toBe(bytes.value);

  const values = parseDotenv(bytes.subnetEnv);
  expect(Prefix.parse(values.get('FLANNEL_SUBNET') ?? '').equals(subnets.subnet)).toBe(true);
  const env = formatSubnetEnv({
    ...(network.network === undefined ? {} : { network: network.network }),
    subnet: subnets.subnet,
    ...(network.ipv6Network === undefined ? {} : { ipv6Network: network.ipv6Network }),
    ...(subnets.subnet6 === undefined ? {} : { ipv6Subnet: subnets.subnet6 }),
    mtu: MTU[bytes.name] ?? 1500,
    ipMasq: true,
  });
  expect(env).toBe(bytes.subnetEnv);
}
