import type { DataplaneOptions } from '../../src/dataplane/dataplane.js';
import type { Opened } from './remote.js';
import { Remote } from './remote.js';
import { NetNs, veth } from './netns.js';
import { ok } from './process.js';
import type { Finished } from './process.js';

/**
 * One host of the lab and its pod, as flannel's bridge plugin lays them out:
 *
 *   pod eth0 10.244.N.2/24, fd77:N::2/64 ── cni0 10.244.N.1/24, fd77:N::1/64 · flannel0 10.244.N.0/32
 *   underlay eth0 192.168.77.N/24
 */
export interface Host {
  readonly number: number;
  readonly ns: NetNs;
  readonly pod: NetNs;
  readonly underlay: string;
  readonly subnet: string;
  readonly subnet6: string;
  readonly podAddress: string;
  readonly podAddress6: string;
}

/** Hosts on one underlay, joined by a bridge in a namespace of its own; disposing removes everything. */
export class EngineLab implements AsyncDisposable {
  readonly hosts: readonly Host[];
  readonly #resources: AsyncDisposable[];

  private constructor(hosts: readonly Host[], resources: AsyncDisposable[]) {
    this.hosts = hosts;
    this.#resources = resources;
  }

  static async create(count: number, podMtu = 1472): Promise<EngineLab> {
    const resources: AsyncDisposable[] = [];
    const own = <T extends AsyncDisposable>(resource: T): T => {
      resources.unshift(resource);
      return resource;
    };
    try {
      const lan = own(await NetNs.create('eng', 'lan'));
      await lan.ip('link', 'add', 'br0', 'type', 'bridge');
      await lan.ip('link', 'set', 'br0', 'up');
      const hosts: Host[] = [];
      for (let number = 1; number <= count; number++) {
        const ns = own(await NetNs.create('eng', `host${String(number)}`));
        const pod = own(await NetNs.create('eng', `pod${String(number)}`));
        const host: Host = {
          number,
          ns,
          pod,
          underlay: `192.168.77.${String(number)}`,
          subnet: `10.244.${String(number)}.0/24`,
          subnet6: `fd77:${String(number)}::/64`,
          podAddress: `10.244.${String(number)}.2`,
          podAddress6: `fd77:${String(number)}::2`,
        };
        const port = `p${String(number)}`;
        await veth({ ns, name: 'eth0', address: `${host.underlay}/24` }, { ns: lan, name: port });
        await lan.ip('link', 'set', port, 'master', 'br0');
        await ns.ip('address', 'add', `fd76::${String(number)}/64`, 'dev', 'eth0', 'nodad');
        await ns.ip('link', 'add', 'cni0', 'type', 'bridge');
        await ns.ip('link', 'set', 'cni0', 'mtu', String(podMtu), 'up');
        await veth({ ns, name: 'pod0' }, { ns: pod, name: 'eth0', address: `${host.podAddress}/24` }, { mtu: podMtu });
        await ns.ip('link', 'set', 'pod0', 'master', 'cni0');
        await ns.ip('address', 'add', `10.244.${String(number)}.1/24`, 'dev', 'cni0');
        await ns.ip('-6', 'address', 'add', `fd77:${String(number)}::1/64`, 'dev', 'cni0', 'nodad');
        await pod.ip('-6', 'address', 'add', `${host.podAddress6}/64`, 'dev', 'eth0', 'nodad');
        await pod.ip('route', 'add', 'default', 'via', `10.244.${String(number)}.1`);
        await pod.ip('-6', 'route', 'add', 'default', 'via', `fd77:${String(number)}::1`);
        await ns.sysctl({ 'net.ipv4.ip_forward': 1, 'net.ipv6.conf.all.forwarding': 1 });
        await rpFilter(ns, 0);
        hosts.push(host);
      }
      return new EngineLab(hosts, resources);
    } catch (error) {
      for (const resource of resources) await resource[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** A remote host in this namespace that ends with the lab. */
  async remote(ns: NetNs, node: readonly string[] = [], through: readonly string[] = []): Promise<Remote> {
    const remote = await Remote.start(ns, node, through);
    this.#resources.unshift(remote);
    return remote;
  }

  /** The options of a host's data plane: its own lease, bound to its underlay address. */
  options(host: Host, more: Partial<DataplaneOptions> = {}): DataplaneOptions {
    return {
      device: 'flannel0',
      bind: { address: host.underlay },
      local: [host.subnet, host.subnet6],
      ownAddresses: [host.underlay, `10.244.${String(host.number)}.1`],
      ...more,
    };
  }

  /** Routes to all other hosts. */
  routes(host: Host): (readonly [string, string])[] {
    return this.hosts
      .filter((other) => other !== host)
      .flatMap((other) => [[other.subnet, other.underlay] as const, [other.subnet6, other.underlay] as const]);
  }

  /** Opens a data plane on a host, sets its routes and the device's address, MTU and kernel route, as the agent does. */
  async open(remote: Remote, host: Host, more: Partial<DataplaneOptions> = {}): Promise<Opened> {
    const opened = await remote.open(this.options(host, more));
    await remote.routes(this.routes(host));
    await plug(host.ns, opened, `10.244.${String(host.number)}.0/32`);
    return opened;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const resource of this.#resources) await resource[Symbol.asyncDispose]();
  }
}

/** Sets reverse path filtering of every interface of a namespace, those to come included. */
export async function rpFilter(ns: NetNs, value: 0 | 1 | 2): Promise<void> {
  await ns.ok('sh', ['-c', `for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo ${String(value)} > $f; done`]);
}

/** Address, MTU, link state and routes of an opened device. */
export async function plug(ns: NetNs, { device, mtu }: Opened, address: string): Promise<void> {
  await ns.ip('address', 'add', address, 'dev', device.name);
  await ns.ip('link', 'set', device.name, 'mtu', String(mtu.overlay), 'up');
  await ns.ip('route', 'add', '10.244.0.0/16', 'dev', device.name);
  await ns.ip('-6', 'route', 'add', 'fd77::/16', 'dev', device.name);
}

/** Runs ping; its output also tells about ICMP errors. */
export async function ping(from: NetNs, ...args: readonly string[]): Promise<Finished> {
  return await from.run('ping', ['-n', ...args]);
}

/** Packets that ping got answers to. */
export async function answers(from: NetNs, ...args: readonly string[]): Promise<number> {
  const { stdout, stderr } = await ping(from, ...args);
  const found = / (\d+) received/.exec(stdout);
  if (found === null) throw new Error(`ping ${args.join(' ')}: ${stdout}${stderr}`);
  return Number(found[1]);
}

/** Offload features of an interface, such as `{ tx: false }`. */
export async function ethtool(ns: NetNs, device: string, features: Readonly<Record<string, boolean>>): Promise<void> {
  const args = Object.entries(features).flatMap(([name, on]) => [name, on ? 'on' : 'off']);
  await ok('ip', ['netns', 'exec', ns.name, 'ethtool', '-K', device, ...args]);
}
