/**
 * Everything that an agent leaves on a host, for `podwire cleanup`: firewall rules of every manager, its accepts in
 * other firewalls, routes with our protocol number, devices that outlive a process, the control socket.
 */
import { lstat, rm } from 'node:fs/promises';
import { PodwireError } from '../../errors.js';
import { Prefix } from '../../net/prefix.js';
import { ipJson, type Runner } from '../exec.js';
import { field, listField, numberField, textField } from '../interfaces.js';
import { listTunDevices } from '../overlay-link.js';
import { describeRoute, type KernelRoute, listRoutes, removeRoutes, ROUTE_PROTOCOL } from '../routes.js';
import { Admissions } from './admission.js';
import { findLeftovers, type Removal } from './leftovers.js';
import { firewallKey, firewallNames } from './names.js';
import { listChains } from './nft.js';
import { findTools } from './tools.js';

export interface RemainsOptions {
  readonly runner: Runner;
  readonly subnetFile: string;
  readonly controlSocket: string;
  /** Pod networks of the agent; without any, only what bears its own name is found. */
  readonly networks: readonly Prefix[];
}

/** Kinds of devices that the kernel keeps when the agent is gone. */
const LASTING_KINDS = new Set(['vxlan', 'wireguard', 'ipip', 'sit', 'ip6tnl']);

/**
 * What is left, in the order in which it should go. Nothing is changed until a removal is called.
 *
 * @throws {PodwireError} `DEVICE_IN_USE` when a living process still routes one of the networks; `COMMAND_FAILED`.
 */
export async function findRemains(options: RemainsOptions): Promise<Removal[]> {
  const { runner, networks } = options;
  const names = firewallNames(await firewallKey(options.subnetFile));
  const tools = await findTools(runner);
  const routes = await ownRoutes(runner, networks);
  const tunDevices = await listTunDevices(runner);
  const alive = routes.find(({ device }) => tunDevices.has(device) && !isWireguard(device));
  if (alive !== undefined) {
    throw new PodwireError(
      'DEVICE_IN_USE',
      `an agent is alive: ${alive.device} carries ${alive.destination.toString()} and would be gone without its process; stop that agent first`,
    );
  }
  const known = networks.length === 0 ? undefined : networks;
  const listing = tools.nft.usable ? await listChains(runner) : undefined;
  const rules = await findLeftovers({ runner, names, tools, networks: known, keep: undefined, listing });
  return [
    ...rules,
    ...(await new Admissions(runner, names, tools).leftovers(listing?.chains)),
    ...routes.map((route) => ({ what: describeRoute(route), remove: () => removeRoutes(runner, [route]) })),
    ...(await lastingDevices(runner, networks, routes)),
    ...(await deadSocket(options.controlSocket)),
  ];
}

/** A device of wireguard-go is a TUN too, but of a process that outlives the agent and ends with its device. */
function isWireguard(device: string): boolean {
  return device.startsWith('flannel-wg');
}

async function ownRoutes(runner: Runner, networks: readonly Prefix[]): Promise<KernelRoute[]> {
  const found: KernelRoute[] = [];
  for (const family of new Set(networks.map((network) => network.family))) {
    const routes = await listRoutes(runner, family);
    found.push(
      ...routes.filter(
        (route) =>
          route.protocol === String(ROUTE_PROTOCOL) && networks.some((network) => network.contains(route.destination)),
      ),
    );
  }
  return found;
}

/**
 * Devices with flannel's names that carry routes of ours, or an address of ours and nobody else's route: flanneld's own
 * has its routes with another protocol number.
 */
async function lastingDevices(
  runner: Runner,
  networks: readonly Prefix[],
  own: readonly KernelRoute[],
): Promise<Removal[]> {
  if (networks.length === 0) return [];
  const routes = [...(await listRoutes(runner, 4)), ...(await listRoutes(runner, 6))];
  const removals: Removal[] = [];
  for (const entry of await ipJson(runner, ['-d', 'address', 'show'])) {
    const name = textField(entry, 'ifname') ?? '';
    const kind = textField(field(entry, 'linkinfo'), 'info_kind') ?? '';
    if (!name.startsWith('flannel') || !(LASTING_KINDS.has(kind) || isWireguard(name))) continue;
    const isAddressed = listField(entry, 'addr_info').some((info) => {
      const text = `${textField(info, 'local') ?? ''}/${numberField(info, 'prefixlen') ?? ''}`;
      const address = Prefix.tryParse(text);
      return address !== undefined && networks.some((network) => network.contains(address));
    });
    const others = routes.some(
      (route) => route.device === name && !['2', 'kernel', String(ROUTE_PROTOCOL)].includes(route.protocol),
    );
    if (!own.some((route) => route.device === name) && !(isAddressed && !others)) continue;
    removals.push({
      what: `${kind} device ${name}`,
      remove: async () => void (await runner('ip', ['link', 'del', 'dev', name])),
    });
  }
  return removals;
}

async function deadSocket(path: string): Promise<Removal[]> {
  const stats = await lstat(path).catch(() => undefined);
  return stats?.isSocket() === true
    ? [{ what: `control socket ${path}`, remove: () => rm(path, { force: true }) }]
    : [];
}
