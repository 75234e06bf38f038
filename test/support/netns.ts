import type { SpawnOptions } from 'node:child_process';
import { ok, Process, run, type Finished } from './process.js';

let counter = 0;

/**
 * A network namespace for one test, named `pw<area>-<pid>-<n>-<label>`. Disposing kills what still runs in it and
 * deletes it, whatever it holds; a veth end in it takes its peer along.
 *
 * ```ts
 * await using a = await NetNs.create('engine', 'a');
 * await using b = await NetNs.create('engine', 'b');
 * await veth({ ns: a, name: 'eth0', address: '10.0.0.1/24' }, { ns: b, name: 'eth0', address: '10.0.0.2/24' });
 * ```
 */
export class NetNs implements AsyncDisposable {
  readonly name: string;

  private constructor(name: string) {
    this.name = name;
  }

  /** Creates the namespace with loopback up and IPv6 autoconfiguration chatter (RS, MLD, DAD) off. */
  static async create(area: string, label = 'ns'): Promise<NetNs> {
    counter += 1;
    const ns = new NetNs(`pw${area}-${String(process.pid)}-${String(counter)}-${label}`);
    await ok('ip', ['netns', 'add', ns.name]);
    await ns.ip('link', 'set', 'lo', 'up');
    await ns.sysctl({ 'net.ipv6.conf.default.accept_dad': 0, 'net.ipv6.conf.default.router_solicitations': 0 });
    return ns;
  }

  /** Runs `ip -n <namespace> ...args`; returns stdout, throws when it fails. */
  async ip(...args: readonly string[]): Promise<string> {
    return await ok('ip', ['-n', this.name, ...args]);
  }

  /** Runs a program inside to its end, whatever its exit code. */
  async run(command: string, args: readonly string[], options: SpawnOptions = {}): Promise<Finished> {
    return await run('ip', ['netns', 'exec', this.name, command, ...args], options);
  }

  /** Runs a program inside; returns stdout, throws with all output unless it exits with 0. */
  async ok(command: string, args: readonly string[], options: SpawnOptions = {}): Promise<string> {
    return await ok('ip', ['netns', 'exec', this.name, command, ...args], options);
  }

  /** Starts a program inside. `ip netns exec` becomes the program, so signals and the pid are the program's own. */
  spawn(command: string, args: readonly string[], options: SpawnOptions = {}): Process {
    return new Process('ip', ['netns', 'exec', this.name, command, ...args], options);
  }

  /** Processes inside. */
  async pids(): Promise<number[]> {
    return (await run('ip', ['netns', 'pids', this.name])).stdout.split('\n').filter(Boolean).map(Number);
  }

  /** Sets sysctls of this namespace, in order; `/` may stand for `.` where an interface name has dots. */
  async sysctl(values: Readonly<Record<string, string | number>>): Promise<void> {
    const script = Object.entries(values)
      .map(([key, value]) => `echo ${String(value)} > /proc/sys/${key.includes('/') ? key : key.replaceAll('.', '/')}`)
      .join(' && ');
    await this.ok('sh', ['-c', script]);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const pid of await this.pids()) {
      try {
        process.kill(pid, 'SIGKILL');
      } catch {
        // It ended meanwhile.
      }
    }
    await run('ip', ['netns', 'delete', this.name]);
  }
}

/** One end of a veth pair; `address` with its prefix length, such as `10.0.0.1/24`. */
export interface VethEnd {
  readonly ns: NetNs;
  readonly name: string;
  readonly address?: string;
}

/** Joins two namespaces with a veth pair, both ends up. The pair lives until one of its namespaces is disposed. */
export async function veth(left: VethEnd, right: VethEnd, options: { readonly mtu?: number } = {}): Promise<void> {
  const mtu = options.mtu === undefined ? [] : ['mtu', String(options.mtu)];
  const peer = ['peer', 'name', right.name, 'netns', right.ns.name, ...mtu];
  await ok('ip', ['link', 'add', left.name, 'netns', left.ns.name, ...mtu, 'type', 'veth', ...peer]);
  for (const { ns, name, address } of [left, right]) {
    if (address !== undefined) await ns.ip('address', 'add', address, 'dev', name);
    await ns.ip('link', 'set', name, 'up');
  }
}
