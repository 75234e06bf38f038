/**
 * `--ip-blackhole-route`: a packet for the own subnet that no bridge takes (no pod was ever started, the bridge is
 * down) ends here instead of going round through the network's route to the tunnel.
 */
import { messageOf } from '../../errors.js';
import type { Prefix } from '../../net/prefix.js';
import type { Runner } from '../exec.js';
import { BLACKHOLE_METRIC, isOwnBlackhole, listRoutes, removeRoutes, ROUTE_PROTOCOL } from '../routes.js';

/**
 * Makes the blackholes of `networks` exactly those of `subnets`.
 *
 * @returns subnets whose route had to be added.
 * @throws {PodwireError} `COMMAND_FAILED`.
 */
export async function ensureBlackholes(
  runner: Runner,
  networks: readonly Prefix[],
  subnets: readonly Prefix[],
): Promise<Prefix[]> {
  const added: Prefix[] = [];
  for (const network of networks) {
    const { family } = network;
    const present = (await listRoutes(runner, family)).filter(
      (route) => isOwnBlackhole(route) && network.contains(route.destination),
    );
    await removeRoutes(
      runner,
      present.filter(({ destination }) => !subnets.some((subnet) => subnet.equals(destination))),
    );
    for (const subnet of subnets) {
      if (subnet.family !== family || present.some(({ destination }) => destination.equals(subnet))) continue;
      await addRoute(runner, subnet);
      added.push(subnet);
    }
  }
  return added;
}

async function addRoute(runner: Runner, subnet: Prefix): Promise<void> {
  try {
    const route = `${subnet.toString()} proto ${ROUTE_PROTOCOL} metric ${BLACKHOLE_METRIC}`;
    await runner('ip', [`-${subnet.family}`, 'route', 'add', 'blackhole', ...route.split(' ')]);
  } catch (error) {
    if (!/File exists/.test(messageOf(error))) throw error;
  }
}
