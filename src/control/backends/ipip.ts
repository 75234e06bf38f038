/**
 * The `ipip` backend: IPv4 in IPv4 (protocol 4) through the kernel's device `flannel.ipip`, one onlink route a host
 * (contract 6), 20 bytes of overhead; where the kernel has no such device, or with `"Mode": "user"`, podwire carries the
 * packets itself. Without the tunnel for hosts on the same link with DirectRouting.
 */
import { messageOf, PodwireError } from '../../errors.js';
import { ipJson } from '../../host/exec.js';
import { field, textField } from '../../host/interfaces.js';
import type { Prefix } from '../../net/prefix.js';
import { describeJson } from '../json.js';
import type { Lease } from '../lease.js';
import { backendOption, type NetworkConfig } from '../network-config.js';
import type { Backend, BackendOptions } from './backend.js';
import { UserIpipBackend } from './ipip-user.js';
import { baseAddresses, type Carrier, KernelBackend } from './kernel-backend.js';
import type { KernelPath } from './kernel-paths.js';
import { ownPublicAddresses, peerAddress } from './underlay.js';

const TYPE = 'ipip';
const DEVICE = 'flannel.ipip';
const OVERHEAD = 20;

/** The table's entry; see {@link KernelBackend}. */
export const IpipBackend = {
  /**
   * @throws {PodwireError} `UNSUPPORTED` (IPv6; no ipip in the kernel with Mode kernel), `INVALID_CONFIG`, `DEVICE_IN_USE` (a device of
   *   that name and another kind), and as KernelBackend's.
   */
  async open(options: BackendOptions): Promise<Backend> {
    const { network, underlay, runner, logger } = options;
    const mode = modeOf(network);
    const { address } = underlay;
    if (network.enableIPv6 || address === undefined) {
      throw new PodwireError(
        'UNSUPPORTED',
        'the ipip backend carries IPv4 over IPv4 only: set EnableIPv6 to false and EnableIPv4 to true, or use the backend vxlan',
      );
    }
    const directRouting = backendOption(network, 'DirectRouting') ?? false;
    if (typeof directRouting !== 'boolean') {
      throw new PodwireError(
        'INVALID_CONFIG',
        `invalid network config: Backend.DirectRouting is ${describeJson(directRouting)}; give true or false`,
      );
    }
    const userOptions = { device: DEVICE, local: address, directRouting };
    if (mode === 'user') return UserIpipBackend.open(options, userOptions);
    const existing = (await ipJson(runner, ['-d', 'link', 'show'])).find(
      (entry) => textField(entry, 'ifname') === DEVICE,
    );
    const kind = textField(field(existing, 'linkinfo'), 'info_kind');
    if (existing !== undefined && kind !== 'ipip') {
      throw new PodwireError(
        'DEVICE_IN_USE',
        `${DEVICE} is no ipip device but ${kind ?? 'of an unknown kind'}: remove it (ip link del ${DEVICE}) and start again`,
      );
    }
    const mtu = underlay.mtu - OVERHEAD;
    const carrier: Carrier = {
      type: TYPE,
      device: DEVICE,
      mtu,
      attributes: { ...ownPublicAddresses(underlay), backendType: TYPE },
      facts: { carriedBy: 'kernel', directRouting },
      directRouting,
      base: (leases) => ({
        links: [
          {
            device: DEVICE,
            up: true,
            mtu,
            create: {
              // The local address tells it from tunl0, which the module makes for itself.
              command: `link add ${DEVICE} mtu ${mtu} type ipip local ${address.toString()}`,
              matches: (entry) => isOurs(entry, address.toString()),
            },
          },
        ],
        addresses: baseAddresses(leases, DEVICE, 4),
        exclusive: [DEVICE],
      }),
      path: (prefix: Prefix, lease: Lease): KernelPath => ({
        route: { destination: prefix, device: DEVICE, gateway: peerAddress(prefix, lease)!, onlink: true },
      }),
      refusal: () => undefined,
    };
    try {
      return await KernelBackend.open(carrier, options, new Set(existing === undefined ? [] : [DEVICE]));
    } catch (error) {
      if (!/Operation not supported|Unknown device type/.test(messageOf(error))) throw error;
      if (mode === 'auto') {
        logger.info({ reason: messageOf(error) }, 'ipip is carried by podwire: this kernel has no ipip device');
        return UserIpipBackend.open(options, userOptions);
      }
      throw new PodwireError(
        'UNSUPPORTED',
        `this kernel has no ipip (${messageOf(error)}): load it (modprobe ipip), or set "Mode":"user" in the Backend of the network config, and podwire carries the packets itself`,
        { cause: error },
      );
    }
  },
};

/** @throws {PodwireError} `INVALID_CONFIG`. */
function modeOf(network: NetworkConfig): 'auto' | 'kernel' | 'user' {
  const mode = backendOption(network, 'Mode') ?? 'auto';
  if (mode === 'auto' || mode === 'kernel' || mode === 'user') return mode;
  throw new PodwireError(
    'INVALID_CONFIG',
    `invalid network config: Backend.Mode is ${describeJson(mode)}; give user, kernel or auto`,
  );
}

function isOurs(entry: unknown, local: string): boolean {
  const info = field(entry, 'linkinfo');
  const data = field(info, 'info_data');
  const remote = textField(data, 'remote') ?? 'any';
  return (
    textField(info, 'info_kind') === 'ipip' &&
    textField(data, 'local') === local &&
    (remote === 'any' || remote === '0.0.0.0')
  );
}
