/**
 * The lab's machines, out of network namespaces:
 *
 * ```
 *   pod ns ── eth0 ═ veth ── cni0 (bridge) ── host ns ── eth0 ═ veth ── underlay (bridge) in its own namespace
 * ```
 *
 * Every host forwards, has one underlay address and, once its agent wrote subnet.env, a bridge and a pod in its
 * subnet, as a CNI plugin would set them up.
 */
import { run } from '../../host/exec.js';
import { type Address, type Family, Prefix } from '../../net/prefix.js';
import { namespaces, removeNamespace } from './leftovers.js';

/** The underlay and the overlay live in namespaces of their own, so these cannot collide with the machine's. */
export const UNDERLAYS: Readonly<Record<Family, Prefix>> = {
  4: Prefix.parse('172.30.0.0/24'),
  6: Prefix.parse('fd00:30::/64'),
};
export const NETWORKS: Readonly<Record<Family, Prefix>> = {
  4: Prefix.parse('10.42.0.0/16'),
  6: Prefix.parse('fd00:42::/48'),
};
export const UNDERLAY_MTU = 1500;
/** Hosts have the addresses .1 to .MAX_HOSTS of the underlay. */
export const MAX_HOSTS = 64;

export interface PodPlace {
  readonly netns: string;
  /** Of the first family; checks that name no family use it. */
  readonly address: Address;
  readonly addresses: readonly Address[];
}

export interface HostPlace {
  /** 1, 2, … */
  readonly number: number;
  readonly netns: string;
  /** Underlay address, of the first family. */
  readonly address: Address;
}

export interface PlacedAddress {
  readonly address: Address;
  /** Prefix length. */
  readonly length: number;
}

function addAddress({ address, length }: PlacedAddress, device: string): string {
  // Nobody else can have it: duplicate address detection would only take time.
  return `address add ${address.toString()}/${String(length)} dev ${device}${address.family === 6 ? ' nodad' : ''}`;
}

/** `ip -n NAMESPACE` for several commands in one process. */
async function ipIn(netns: string, commands: readonly string[]): Promise<void> {
  await run('ip', ['-n', netns, '-batch', '-'], { input: `${commands.join('\n')}\n` });
}

async function sysctlIn(netns: string, values: Readonly<Record<string, string>>): Promise<void> {
  const script = Object.entries(values).map(([key, value]) => `echo ${value} > /proc/sys/net/${key}`);
  await run('ip', ['netns', 'exec', netns, 'sh', '-c', script.join(' && ')]);
}

/** Makes and removes the namespaces of one run. */
export class Topology implements AsyncDisposable {
  readonly #prefix: string;
  readonly #underlay: string;
  readonly #families: readonly Family[];
  readonly #namespaces: string[] = [];

  /** @param prefix of all namespaces, such as `pwlab-123-` */
  constructor(prefix: string, families: readonly Family[] = [4]) {
    this.#prefix = prefix;
    this.#families = families;
    this.#underlay = `${prefix}net`;
  }

  async #namespace(name: string): Promise<void> {
    // Noted first: a namespace that came to be although its command was interrupted is removed, too.
    this.#namespaces.push(name);
    await run('ip', ['netns', 'add', name]);
    // Duplicate address detection keeps link-local addresses from being used for a second.
    if (this.#families.includes(6)) await sysctlIn(name, { 'ipv6/conf/default/accept_dad': '0' });
  }

  /** The underlay: one bridge. */
  async createUnderlay(): Promise<void> {
    await this.#namespace(this.#underlay);
    await ipIn(this.#underlay, ['link add underlay type bridge', 'link set underlay up']);
  }

  /** A host on the underlay, forwarding, without pods. */
  async createHost(number: number): Promise<HostPlace> {
    const netns = `${this.#prefix}h${String(number)}`;
    const places = this.#families.map((family) => ({
      address: UNDERLAYS[family].address.offset(BigInt(number)),
      length: UNDERLAYS[family].length,
    }));
    await this.#namespace(netns);
    const port = `h${String(number)}`;
    await ipIn(this.#underlay, [
      `link add ${port} mtu ${String(UNDERLAY_MTU)} type veth peer name eth0 netns ${netns} mtu ${String(UNDERLAY_MTU)}`,
      `link set ${port} master underlay up`,
    ]);
    const forwarding = {
      'ipv4/ip_forward': '1',
      ...(this.#families.includes(6) ? { 'ipv6/conf/all/forwarding': '1' } : {}),
    };
    await sysctlIn(netns, forwarding);
    await ipIn(netns, ['link set lo up', ...places.map((place) => addAddress(place, 'eth0')), 'link set eth0 up']);
    return { number, netns, address: places[0]!.address };
  }

  /**
   * The bridge `cni0` with the subnet's first address, and a pod behind it with the second.
   *
   * @param gateways the addresses of FLANNEL_SUBNET and FLANNEL_IPV6_SUBNET, with the subnets' lengths
   * @param mtu of bridge, veth and pod: FLANNEL_MTU
   */
  async createPod(host: HostPlace, gateways: readonly PlacedAddress[], mtu: number): Promise<PodPlace> {
    const netns = `${host.netns}-pod`;
    const places = gateways.map(({ address, length }) => ({ address: address.offset(1n), length }));
    await this.#namespace(netns);
    await ipIn(host.netns, [
      `link add cni0 mtu ${String(mtu)} type bridge`,
      ...gateways.map((gateway) => addAddress(gateway, 'cni0')),
      'link set cni0 up',
      `link add pod1 mtu ${String(mtu)} type veth peer name eth0 netns ${netns} mtu ${String(mtu)}`,
      'link set pod1 master cni0 up',
    ]);
    await ipIn(netns, [
      'link set lo up',
      ...places.map((place) => addAddress(place, 'eth0')),
      'link set eth0 up',
      ...gateways.map(({ address }) => `route add default via ${address.toString()} dev eth0`),
    ]);
    const addresses = places.map(({ address }) => address);
    return { netns, address: addresses[0]!, addresses };
  }

  /** Sets the MTU of a pod's two veth ends and its bridge. */
  async setPodMtu(host: HostPlace, pod: PodPlace, mtu: number): Promise<void> {
    await ipIn(host.netns, [`link set pod1 mtu ${String(mtu)}`, `link set cni0 mtu ${String(mtu)}`]);
    await ipIn(pod.netns, [`link set eth0 mtu ${String(mtu)}`]);
  }

  /** Removes a host and its pod. */
  async removeHost(host: HostPlace): Promise<void> {
    for (const name of [`${host.netns}-pod`, host.netns]) await this.#remove(name);
  }

  async #remove(name: string): Promise<void> {
    const index = this.#namespaces.indexOf(name);
    if (index === -1) return;
    if ((await namespaces()).includes(name)) await removeNamespace(name);
    this.#namespaces.splice(index, 1);
  }

  /** Removes everything, as far as it can be; the first failure is thrown at the end. */
  async [Symbol.asyncDispose](): Promise<void> {
    const failures: unknown[] = [];
    for (const name of this.#namespaces.toReversed()) {
      await this.#remove(name).catch((error: unknown) => failures.push(error));
    }
    if (failures.length > 0) throw failures[0];
  }
}
