import { describe, expect } from 'vitest';
import { backendContract } from '../contract/backends/contract.js';
import { missing } from '../support/requires.js';

const MAC: unknown = expect.stringMatching(/^([0-9a-f]{2}:){5}[0-9a-f]{2}$/);
const vtep = { VNI: 1, VtepMAC: MAC };

describe.skipIf(
  missing({ root: true, tun: true, commands: ['ip', 'bridge', 'ping'], files: ['dist/bundle/main.cjs'] }),
)('backends in user space', () => {
  backendContract({ name: 'udp', backend: { Type: 'udp' }, mtu: 1472, lease: {} });
  backendContract({ name: 'udp, dual stack', backend: { Type: 'udp' }, stack: 'dual', mtu: 1472, lease: {} });
  backendContract({ name: 'udp, IPv6 only', backend: { Type: 'udp' }, stack: 'ipv6', mtu: 1452, lease: {} });
  backendContract({
    name: 'udp over an IPv6 underlay',
    backend: { Type: 'udp', IPv6Underlay: true },
    outer: 'ipv6',
    mtu: 1452,
    lease: {},
  });
  backendContract({
    name: 'vxlan by podwire',
    backend: { Type: 'vxlan' },
    mtu: 1450,
    lease: { BackendType: 'vxlan', BackendData: vtep },
  });
  backendContract({
    name: 'vxlan by podwire, dual stack',
    backend: { Type: 'vxlan', Mode: 'user' },
    stack: 'dual',
    mtu: 1430,
    lease: { BackendType: 'vxlan', BackendData: vtep, BackendV6Data: vtep },
  });
  backendContract({
    name: 'vxlan by podwire, IPv6 only',
    backend: { Type: 'vxlan', Mode: 'user' },
    stack: 'ipv6',
    mtu: 1430,
    lease: { BackendType: 'vxlan', BackendV6Data: vtep },
  });
  backendContract({
    name: 'vxlan by podwire with DirectRouting',
    backend: { Type: 'vxlan', Mode: 'user', DirectRouting: true },
    mtu: 1450,
    lease: { BackendType: 'vxlan', BackendData: vtep },
    survives: true,
  });
  backendContract({
    name: 'ipip by podwire',
    backend: { Type: 'ipip', Mode: 'user' },
    mtu: 1480,
    lease: { BackendType: 'ipip' },
  });
  backendContract({
    name: 'ipip by podwire with DirectRouting',
    backend: { Type: 'ipip', Mode: 'user', DirectRouting: true },
    mtu: 1480,
    lease: { BackendType: 'ipip' },
    survives: true,
  });
  for (const [type, mtu, mode] of [
    ['udp', 1472, {}],
    ['vxlan', 1450, { Mode: 'user' }],
  ] as const) {
    backendContract({
      name: `${type} on a port of its own, told by the lease`,
      backend: { Type: type, ...mode },
      mtu,
      lease: { ...(type === 'vxlan' ? { BackendType: 'vxlan', BackendData: vtep } : {}), Port: 18_472 },
      flags: ['--port=18472'],
    });
  }
});
