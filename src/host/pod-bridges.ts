/**
 * Bridges that hand out pod addresses which are not this host's: cni0 or docker0 keep the address of an earlier subnet
 * until somebody removes them, and pods behind them are unreachable from other hosts.
 */
import type { Prefix } from '../net/prefix.js';
import type { HostInterface } from './interfaces.js';

/**
 * @param networks the pod networks.
 * @param subnets this host's own.
 * @param isOurs devices of podwire itself.
 * @returns one line for each such address.
 */
export function strayPodAddresses(
  interfaces: readonly HostInterface[],
  networks: readonly Prefix[],
  subnets: readonly Prefix[],
  isOurs: (device: string) => boolean,
): string[] {
  const strays: string[] = [];
  for (const { name, addresses } of interfaces) {
    if (isOurs(name)) continue;
    for (const { address, prefixLength } of addresses) {
      const network = networks.find((candidate) => candidate.contains(address));
      if (network === undefined || subnets.some((subnet) => subnet.contains(address))) continue;
      strays.push(
        `${name} has ${address.toString()}/${prefixLength}, which lies in the pod network ${network.toString()} but not ` +
          `in this host's ${subnets.join(' ')}: its pods cannot be reached from other hosts; remove it ` +
          `(ip link del ${name}) and start its pods again`,
      );
    }
  }
  return strays;
}
