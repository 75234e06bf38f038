import { describe, expect } from 'vitest';
import { backendContract } from '../contract/backends/contract.js';
import { missing } from '../support/requires.js';

const MAC: unknown = expect.stringMatching(/^([0-9a-f]{2}:){5}[0-9a-f]{2}$/);
const vtep = { VNI: 1, VtepMAC: MAC };

describe.skipIf(
  missing({ root: true, tun: true, commands: ['ip', 'bridge', 'ping'], files: ['dist/bundle/main.cjs'] }),
)('backends in the kernel', () => {
  backendContract({
    name: 'host-gw, dual stack',
    backend: { Type: 'host-gw' },
    stack: 'dual',
    mtu: 1500,
    lease: { BackendType: 'host-gw' },
    survives: true,
  });
  backendContract({ name: 'alloc', backend: { Type: 'alloc' }, mtu: 1500, lease: {}, isolated: true });
  backendContract({
    name: 'extension',
    backend: {
      Type: 'extension',
      PreStartupCommand: 'cat /proc/sys/net/ipv4/ip_default_ttl',
      PostStartupCommand: "sh -c 'ip route replace blackhole $NETWORK'",
      SubnetAddCommand: 'ip route replace $SUBNET via ${PUBLIC_IP}',
      SubnetRemoveCommand: 'ip route del $SUBNET',
    },
    mtu: 1500,
    lease: { BackendType: 'extension', BackendData: '64' },
    survives: true,
  });
  backendContract({
    name: 'vxlan by the kernel',
    backend: { Type: 'vxlan', Mode: 'kernel' },
    mtu: 1450,
    lease: { BackendType: 'vxlan', BackendData: vtep },
    survives: true,
  });
  backendContract({
    name: 'vxlan by the kernel, dual stack',
    backend: { Type: 'vxlan', Mode: 'kernel' },
    stack: 'dual',
    mtu: 1430,
    lease: { BackendType: 'vxlan', BackendData: vtep, BackendV6Data: vtep },
    survives: true,
  });
  backendContract({
    name: 'vxlan by the kernel, IPv6 only',
    backend: { Type: 'vxlan', Mode: 'kernel' },
    stack: 'ipv6',
    mtu: 1430,
    lease: { BackendType: 'vxlan', BackendV6Data: vtep },
    survives: true,
  });
  backendContract({
    name: 'host-gw, IPv6 only',
    backend: { Type: 'host-gw' },
    stack: 'ipv6',
    mtu: 1500,
    lease: { BackendType: 'host-gw' },
    survives: true,
  });
  backendContract({
    name: 'vxlan by the kernel with DirectRouting',
    backend: { Type: 'vxlan', Mode: 'kernel', DirectRouting: true },
    mtu: 1450,
    lease: { BackendType: 'vxlan', BackendData: vtep },
    survives: true,
  });
});
