/**
 * The `host-gw` backend: no tunnel, one kernel route a host, `<subnet> via <PublicIP> dev <underlay device>` (contract
 * 6). Needs all hosts on one link; pods get the underlay's MTU.
 */
import { PodwireError } from '../../errors.js';
import type { Address, Prefix } from '../../net/prefix.js';
import type { Lease } from '../lease.js';
import type { BackendOptions } from './backend.js';
import { type Carrier, KernelBackend } from './kernel-backend.js';
import type { KernelPath } from './kernel-paths.js';
import { ownPublicAddresses, peerAddress } from './underlay.js';

const TYPE = 'host-gw';

/** The table's entry; see {@link KernelBackend}. */
export const HostGwBackend = {
  /** @throws {PodwireError} `INTERFACE`: an advertised address that is not the interface's, and as KernelBackend's. */
  open(options: BackendOptions): Promise<KernelBackend> {
    const { underlay } = options;
    refuseNat(underlay.name, underlay.address, underlay.publicIp);
    refuseNat(underlay.name, underlay.address6, underlay.publicIpv6);
    const carrier: Carrier = {
      type: TYPE,
      device: underlay.name,
      mtu: underlay.mtu,
      attributes: { ...ownPublicAddresses(underlay), backendType: TYPE },
      facts: { carriedBy: 'kernel' },
      directRouting: false,
      base: () => ({}),
      path: (prefix: Prefix, lease: Lease): KernelPath => {
        const gateway = peerAddress(prefix, lease);
        return { route: { destination: prefix, device: underlay.name, ...(gateway === undefined ? {} : { gateway }) } };
      },
      refusal: () => undefined,
      explain: ({ route }, reason) =>
        /invalid gateway|unreachable|No route to host/i.test(reason)
          ? `the next hop ${String(route.gateway)} is not on the same link as ${underlay.name} (${reason}): host-gw needs all hosts in one layer 2 network, elsewhere use the backend vxlan with DirectRouting`
          : reason,
    };
    return KernelBackend.open(carrier, options);
  },
};

function refuseNat(device: string, address: Address | undefined, publicAddress: Address | undefined): void {
  if (address === undefined || publicAddress === undefined || address.equals(publicAddress)) return;
  throw new PodwireError(
    'INTERFACE',
    `your PublicIP ${publicAddress.toString()} differs from the address ${address.toString()} of ${device}, meaning that probably you're on a NAT, which is not supported by host-gw backend: leave --public-ip out, or use vxlan`,
  );
}
