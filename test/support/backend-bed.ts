import { mkdir, mkdtemp, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import type { AgentStatus } from '../../src/agent/status.js';
import { encodeLease } from '../../src/control/lease-codec.js';
import type { LeaseAttributes } from '../../src/control/lease.js';
import { Address } from '../../src/net/prefix.js';
import { ready } from './agents.js';
import { findCounterpart } from './counterparts.js';
import { NetNs, veth } from './netns.js';
import { cli, type Process, until } from './process.js';

export interface BackendHost {
  readonly ns: NetNs;
  readonly number: number;
  readonly underlay: string;
  readonly underlay6: string;
  /** Subnet file, state and `/var/run/wireguard` are below it. */
  readonly home: string;
  readonly subnetFile: string;
}

/** What subnet.env says, by name without `FLANNEL_`. */
export type SubnetFile = Readonly<Record<string, string>>;

/**
 * Two hosts with IPv4 and IPv6 on one link, each with a bridge in the place of a CNI plugin's once {@link pods} was
 * called, agents as processes, and a directory store.
 */
export class BackendBed implements AsyncDisposable {
  readonly directory: string;
  readonly a: BackendHost;
  readonly b: BackendHost;
  readonly store: string;
  readonly #started: Process[] = [];

  private constructor(directory: string, a: BackendHost, b: BackendHost) {
    this.directory = directory;
    this.a = a;
    this.b = b;
    this.store = join(directory, 'store');
  }

  static async create(config: object): Promise<BackendBed> {
    const directory = await mkdtemp(join(tmpdir(), 'pwbe-'));
    const host = async (number: number): Promise<BackendHost> => {
      const home = join(directory, `h${number}`);
      await mkdir(home);
      return {
        ns: await NetNs.create('be', `h${number}`),
        number,
        underlay: `10.77.0.${number}`,
        underlay6: `fd77::${number}`,
        home,
        subnetFile: join(home, 'subnet.env'),
      };
    };
    const bed = new BackendBed(directory, await host(1), await host(2));
    await veth({ ns: bed.a.ns, name: 'eth0' }, { ns: bed.b.ns, name: 'eth0' });
    for (const { ns, underlay, underlay6 } of [bed.a, bed.b]) {
      await ns.ip('address', 'add', `${underlay}/24`, 'dev', 'eth0');
      await ns.ip('address', 'add', `${underlay6}/64`, 'dev', 'eth0', 'nodad');
    }
    await mkdir(join(bed.store, 'subnets'), { recursive: true });
    await bed.configure(config);
    return bed;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const agent of this.#started.splice(0)) await agent[Symbol.asyncDispose]();
    await this.a.ns[Symbol.asyncDispose]();
    await this.b.ns[Symbol.asyncDispose]();
    await rm(this.directory, { recursive: true, force: true });
  }

  async configure(config: object): Promise<void> {
    await writeFile(join(this.store, 'config'), JSON.stringify(config));
  }

  /** An agent in its own mount namespace with its own `/var/run/wireguard`, which wireguard-go and `wg` have fixed. */
  start(host: BackendHost, ...extra: readonly string[]): Process {
    return this.#start(host, '', extra);
  }

  /** The same on a host that has no TUN device. */
  startWithoutTun(host: BackendHost, ...extra: readonly string[]): Process {
    return this.#start(host, 'mount -t tmpfs none /dev/net && ', extra);
  }

  #start(host: BackendHost, before: string, extra: readonly string[]): Process {
    const sockets = join(host.home, 'wireguard');
    const script = `${before}mkdir -p ${sockets} /var/run/wireguard && mount --bind ${sockets} /var/run/wireguard && exec "$@"`;
    const wireguard = findCounterpart('wireguard-go');
    const path = wireguard === undefined ? [] : [dirname(wireguard)];
    const environment = { ...process.env, PATH: [...path, process.env['PATH']].join(':') };
    const agent = host.ns.spawn(
      'sh',
      [
        '-c',
        script,
        'sh',
        process.execPath,
        cli,
        'agent',
        `--store=dir:${this.store}`,
        '--iface=eth0',
        `--subnet-file=${host.subnetFile}`,
        `--state-dir=${join(host.home, 'state')}`,
        '--log-format=json',
        '--workers=1',
        ...extra,
      ],
      { env: environment },
    );
    this.#started.push(agent);
    return agent;
  }

  /** Both agents, ready, and each knowing the other. */
  async startBoth(...extra: readonly string[]): Promise<[Process, Process]> {
    const agents = [this.start(this.a, ...extra), this.start(this.b, ...extra)] as [Process, Process];
    await Promise.all(agents.map(ready));
    return agents;
  }

  async subnet(host: BackendHost): Promise<SubnetFile> {
    const lines = (await readFile(host.subnetFile, 'utf8')).trim().split('\n');
    return Object.fromEntries(lines.map((line) => line.replace(/^FLANNEL_/, '').split('=') as [string, string]));
  }

  /** Gives a host the bridge that a CNI plugin would: the addresses of its subnets, in the place of a pod's. */
  async pods(host: BackendHost): Promise<void> {
    const { SUBNET, IPV6_SUBNET, MTU } = await this.subnet(host);
    const existing = await host.ns.run('ip', ['link', 'show', 'dev', 'cni0']);
    if (existing.code !== 0) await host.ns.ip('link', 'add', 'cni0', 'type', 'bridge');
    await host.ns.ip('link', 'set', 'cni0', 'mtu', MTU ?? '1500', 'up');
    if (SUBNET !== undefined) await host.ns.ip('address', 'replace', SUBNET, 'dev', 'cni0');
    if (IPV6_SUBNET !== undefined) await host.ns.ip('address', 'replace', IPV6_SUBNET, 'dev', 'cni0', 'nodad');
  }

  /** Pings of full size between the bridges, both ways and in every family, pass. */
  async connected(): Promise<void> {
    await Promise.all([this.pods(this.a), this.pods(this.b)]);
    for (const [from, to] of [
      [this.a, this.b],
      [this.b, this.a],
    ] as const) {
      for (const name of ['SUBNET', 'IPV6_SUBNET']) {
        const [mine, theirs] = [(await this.subnet(from))[name], (await this.subnet(to))[name]];
        if (mine === undefined || theirs === undefined) continue;
        await until(async () => (await this.ping(from, to, name)).code === 0, {
          what: `a ping from ${mine} to ${theirs}`,
        });
      }
    }
  }

  /** One ping that fills the pods' MTU and may not be fragmented. */
  async ping(from: BackendHost, to: BackendHost, name: string = 'SUBNET'): Promise<{ readonly code: number | null }> {
    const mine = await this.subnet(from);
    const theirs = await this.subnet(to);
    const address = (file: SubnetFile): string => file[name]!.replace(/\/.*/, '');
    const size = Number(mine['MTU']) - (name === 'SUBNET' ? 28 : 48);
    const args = ['-n', '-c', '1', '-W', '1', '-M', 'do', '-s', String(size), '-I', address(mine), address(theirs)];
    return await from.ns.run('ping', args);
  }

  /** Puts another host's lease into the store, or removes it. */
  async putLease(key: string, attributes: LeaseAttributes): Promise<void> {
    const expiresAt = new Date(Date.now() + 3_600_000);
    await writeFile(join(this.store, 'subnets', `.${key}`), encodeLease(attributes, { expiresAt }));
    await rename(join(this.store, 'subnets', `.${key}`), join(this.store, 'subnets', key));
  }

  async removeLease(key: string): Promise<void> {
    await rm(join(this.store, 'subnets', key));
  }

  /** The stored values by key, without what changes with time. */
  async leases(): Promise<Record<string, string>> {
    const names = (await readdir(join(this.store, 'subnets'))).filter((name) => /^\d/.test(name));
    const values: Record<string, string> = {};
    for (const name of names) {
      const text = await readFile(join(this.store, 'subnets', name), 'utf8');
      values[name] = text.replace(/,"Expiration":.*$/, '}');
    }
    return values;
  }

  /** Paths of a host's state files whose name ends so. */
  async state(host: BackendHost, end: string): Promise<string[]> {
    const names = await readdir(join(host.home, 'state')).catch(() => []);
    return names.filter((name) => name.endsWith(end)).map((name) => join(host.home, 'state', name));
  }

  async status(host: BackendHost): Promise<AgentStatus> {
    const args = [cli, 'status', '--json', `--subnet-file=${host.subnetFile}`];
    return JSON.parse(await host.ns.ok(process.execPath, args)) as AgentStatus;
  }
}

export function attributes(
  publicIp: string,
  backendType: string,
  more: Partial<LeaseAttributes> = {},
): LeaseAttributes {
  return { publicIp: Address.parse(publicIp), backendType, ...more };
}
