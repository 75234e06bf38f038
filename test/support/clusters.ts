import { spawn, type ChildProcess } from 'node:child_process';
import { mkdir, mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { counterpart } from './counterparts.js';
import { ETCD_PREFIX, EtcdServer, type StoredLease } from './clusters-etcd.js';
import { NetNs, veth } from './netns.js';
import { cli, type Finished, type Process, until } from './process.js';
import type { Needs } from './requires.js';

/** What a {@link Cluster} needs of the machine. */
export const CLUSTER_NEEDS: Needs = {
  root: true,
  tun: true,
  commands: ['ip', 'ping', 'iptables', 'ip6tables'],
  files: ['dist/bundle/main.cjs'],
  counterparts: ['flanneld', 'etcd-3.6', 'etcdctl'],
};

export type Daemon = 'flanneld' | 'podwire';

/** Lost and sent echoes of one pair; see clusters-pod.mjs. */
export interface PingCount {
  readonly sent: number;
  readonly lost: number;
  readonly longestGapMs: number;
}

interface Calls {
  transfer(args: { host: string; bytes: number; timeoutMs: number }): { received: number; wrong: number };
  datagrams(args: { host: string; sizes: readonly number[]; timeoutMs: number }): number[];
  startPings(args: { hosts: readonly string[]; intervalMs: number }): null;
  stopPings(args: Record<string, never>): Record<string, PingCount>;
}

/** A pod: a namespace behind its host's bridge, and the traffic program in it. */
export class Pod implements AsyncDisposable {
  readonly ns: NetNs;
  readonly address: string;
  readonly address6: string | undefined;
  readonly #child: ChildProcess;
  readonly #waiting: Map<number, { resolve: (value: unknown) => void; reject: (error: Error) => void }> = new Map();
  #next = 0;

  private constructor(ns: NetNs, address: string, address6: string | undefined) {
    this.ns = ns;
    this.address = address;
    this.address6 = address6;
    const program = fileURLToPath(new URL('clusters-pod.mjs', import.meta.url));
    this.#child = spawn('ip', ['netns', 'exec', ns.name, process.execPath, program], {
      stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
    });
    this.#child.on('message', ({ id, result, error }: { id?: number; result?: unknown; error?: string }) => {
      const waiting = this.#waiting.get(id ?? -1);
      if (waiting === undefined || id === undefined) return;
      this.#waiting.delete(id);
      if (error === undefined) waiting.resolve(result);
      else waiting.reject(new Error(`pod ${this.address}: ${error}`));
    });
    this.#child.on('exit', () => {
      for (const { reject } of this.#waiting.values()) reject(new Error(`pod ${this.address}: its program ended`));
    });
  }

  static async start(ns: NetNs, address: string, address6?: string): Promise<Pod> {
    const pod = new Pod(ns, address, address6);
    await new Promise<void>((resolve, reject) => {
      pod.#child.once('message', () => resolve());
      pod.#child.once('exit', () => reject(new Error(`the program of pod ${address} did not start`)));
    });
    return pod;
  }

  /** Its addresses, IPv4 first. */
  get addresses(): string[] {
    return this.address6 === undefined ? [this.address] : [this.address, this.address6];
  }

  async call<N extends keyof Calls>(call: N, args: Parameters<Calls[N]>[0]): Promise<ReturnType<Calls[N]>> {
    const id = this.#next++;
    const result = await new Promise<unknown>((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      this.#child.send({ id, call, args }, (error) => {
        if (error) reject(error);
      });
    });
    return result as ReturnType<Calls[N]>;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#child.exitCode === null && this.#child.signalCode === null) {
      const ended = new Promise((resolve) => this.#child.once('exit', resolve));
      this.#child.kill('SIGKILL');
      await ended;
    }
  }
}

/** `ip -n NAMESPACE -batch`. */
async function ipBatch(ns: NetNs, commands: readonly string[]): Promise<void> {
  await ns.ok('sh', ['-c', `printf '%s\\n' "$@" | ip -batch -`, 'sh', ...commands]);
}

/** A machine of the cluster: its underlay address, its own /run, at most one daemon and one pod. */
export class ClusterHost {
  readonly number: number;
  readonly ns: NetNs;
  readonly underlay: string;
  readonly underlay6: string;
  readonly run: string;
  readonly subnetFile: string;
  readonly #endpoint: string;
  readonly #podNs: NetNs;
  daemon: { readonly kind: Daemon; readonly process: Process } | undefined;
  pod: Pod | undefined;
  #plugged = '';

  constructor(number: number, ns: NetNs, podNs: NetNs, run: string, endpoint: string) {
    this.number = number;
    this.ns = ns;
    this.#podNs = podNs;
    this.run = run;
    this.#endpoint = endpoint;
    this.subnetFile = join(run, 'subnet.env');
    this.underlay = `10.77.0.${String(number)}`;
    this.underlay6 = `fd77::${String(number)}`;
  }

  /**
   * What the unit says behind the program, the same for both daemons: `--name=value` on host 1, 4, …, `-name value` on
   * host 2, 5, …, and FLANNELD_NAME in the environment on host 3, 6, ….
   */
  get unit(): { readonly arguments: string[]; readonly environment: Readonly<Record<string, string>> } {
    const settings = Object.entries({
      'etcd-endpoints': this.#endpoint,
      'etcd-prefix': ETCD_PREFIX,
      iface: 'eth0',
      'ip-masq': 'true',
      'subnet-file': this.subnetFile,
      'healthz-ip': '127.0.0.1',
      'healthz-port': '8401',
    });
    switch (this.number % 3) {
      case 1:
        return { arguments: settings.map(([name, value]) => `--${name}=${value}`), environment: {} };
      case 2: {
        const args = settings.flatMap(([name, value]) => (value === 'true' ? [`-${name}`] : [`-${name}`, value]));
        return { arguments: args, environment: {} };
      }
      default: {
        const name = (flag: string): string => `FLANNELD_${flag.toUpperCase().replaceAll('-', '_')}`;
        return { arguments: [], environment: Object.fromEntries(settings.map(([flag, value]) => [name(flag), value])) };
      }
    }
  }

  /** Starts a daemon as its {@link unit} says. */
  start(kind: Daemon, ...extra: readonly string[]): Process {
    if (this.daemon?.process.running === true) throw new Error(`host ${String(this.number)} has a daemon already`);
    const program = kind === 'flanneld' ? [counterpart('flanneld')] : [process.execPath, cli, 'agent'];
    const own = { PODWIRE_WORKERS: '1', PODWIRE_LOG_FORMAT: 'json', PODWIRE_STATE_DIR: join(this.run, 'state') };
    const unit = this.unit;
    const [command = '', ...first] = program;
    const env = { ...process.env, ...own, ...unit.environment };
    const started = this.ns.spawn(command, [...first, ...unit.arguments, ...extra], { env });
    this.daemon = { kind, process: started };
    return started;
  }

  /** Starts a daemon, waits until it serves, and gives the host a pod as the CNI plugin would. */
  async join(kind: Daemon, ...extra: readonly string[]): Promise<void> {
    this.start(kind, ...extra);
    await this.ready();
    await this.plug();
  }

  /**
   * Waits until the daemon has written subnet.env and runs its backend. flanneld's last line comes when it watches its
   * own lease: told to end between "Running backend." and that, it waits forever for a watch it never began.
   */
  async ready(): Promise<void> {
    const { kind, process: started } = this.#running();
    const pattern = kind === 'flanneld' ? /Waiting for .* to renew lease/ : /"msg":"ready"/;
    await started.output(pattern, { from: 'stderr', timeoutMs: 20_000 });
  }

  #running(): { readonly kind: Daemon; readonly process: Process } {
    if (this.daemon === undefined) throw new Error(`host ${String(this.number)} has no daemon`);
    return this.daemon;
  }

  /** Ends the daemon; what it leaves on the host stays. */
  async stop(signal: NodeJS.Signals = 'SIGTERM'): Promise<Finished> {
    const { process: started } = this.#running();
    this.daemon = undefined;
    const finished = await started.stop(signal);
    // The kernel may close the sockets of a killed program after its end, and flanneld panics when the port is taken.
    await until(async () => (await this.ns.ok('ss', ['-Hltn', 'sport', '=', ':8401'])) === '', {
      what: 'the health port to be free',
    });
    return finished;
  }

  /** The daemon's stderr since its start. */
  get log(): string {
    return this.#running().process.stderr;
  }

  async subnetEnv(): Promise<string> {
    return await readFile(this.subnetFile, 'utf8');
  }

  /** `10.42.7.0` of `FLANNEL_SUBNET=10.42.7.1/24`. */
  async subnet(): Promise<string> {
    const match = /^FLANNEL_SUBNET=(\d+\.\d+\.\d+)\.1\/24$/m.exec(await this.subnetEnv());
    if (match?.[1] === undefined) throw new Error(`no subnet in ${await this.subnetEnv()}`);
    return `${match[1]}.0`;
  }

  /** The bridge and the pod that subnet.env asks for; a pod in the right subnets stays as it is, as with a plugin. */
  async plug(): Promise<Pod> {
    const env = await this.subnetEnv();
    const subnets = env.replace(/^FLANNEL_(MTU|IPMASQ)=.*\n/gm, '');
    if (this.pod !== undefined && this.#plugged === subnets) return this.pod;
    await this.pod?.[Symbol.asyncDispose]();
    await this.ns.run('ip', ['link', 'delete', 'cni0']);
    await this.ns.run('ip', ['link', 'delete', 'pod']);
    const value = (key: string): string | undefined => new RegExp(`^FLANNEL_${key}=(.*)$`, 'm').exec(env)?.[1];
    const [gateway = '', length = ''] = (value('SUBNET') ?? '').split('/');
    const [gateway6, length6] = (value('IPV6_SUBNET') ?? '').split('/');
    const dual = gateway6 !== undefined && gateway6 !== '' && length6 !== undefined;
    const mtu = value('MTU') ?? '';
    const address = gateway.replace(/\.1$/, '.2');
    const address6 = dual ? gateway6.replace(/::1$/, '::2') : undefined;
    const only = (lines: readonly string[]): readonly string[] => (dual ? lines : []);
    await this.ns.sysctl({ 'net.ipv4.ip_forward': 1, 'net.ipv6.conf.all.forwarding': dual ? 1 : 0 });
    await ipBatch(this.ns, [
      `link add cni0 mtu ${mtu} type bridge`,
      `address add ${gateway}/${length} dev cni0`,
      ...only([`address add ${gateway6 ?? ''}/${length6 ?? ''} dev cni0 nodad`]),
      'link set cni0 up',
      `link add pod mtu ${mtu} type veth peer name eth0 netns ${this.#podNs.name} mtu ${mtu}`,
      'link set pod master cni0 up',
    ]);
    await ipBatch(this.#podNs, [
      `address add ${address}/${length} dev eth0`,
      ...only([`address add ${address6 ?? ''}/${length6 ?? ''} dev eth0 nodad`]),
      'link set eth0 up',
      `route add default via ${gateway}`,
      ...only([`route add default via ${gateway6 ?? ''}`]),
    ]);
    this.pod = await Pod.start(this.#podNs, address, address6);
    this.#plugged = subnets;
    return this.pod;
  }

  /** The answer of the daemon's health server, as `200 text`. */
  async health(path: string): Promise<string> {
    const script = `const r = await fetch('http://127.0.0.1:8401${path}'); console.log(r.status, (await r.text()).trim())`;
    const result = await this.ns.run(process.execPath, ['--input-type=module', '-e', script]);
    return result.stdout.trim();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.daemon?.process[Symbol.asyncDispose]();
    await this.pod?.[Symbol.asyncDispose]();
    await this.#podNs[Symbol.asyncDispose]();
    await this.ns[Symbol.asyncDispose]();
  }
}

/**
 * Hosts with pods, joined by a bridge, and an etcd beside them; all in network namespaces. Hosts start without a
 * daemon.
 *
 * ```
 *   pod ns ── cni0 ── host ns ── eth0 ── br0 (underlay ns) ── eth0 ── etcd ns
 *             10.42.x.1          10.77.0.N, fd77::N                  10.77.0.250
 * ```
 */
export class Cluster implements AsyncDisposable {
  readonly hosts: readonly ClusterHost[];
  readonly etcd: EtcdServer;
  /** The underlay: bridge `br0`, the hosts' ports `h1`, `h2`, …, etcd's port `etcd`. */
  readonly underlay: NetNs;
  readonly #etcdNs: NetNs;
  readonly #directory: string;
  static readonly #live: Set<Cluster> = new Set();

  private constructor(
    hosts: readonly ClusterHost[],
    etcd: EtcdServer,
    underlay: NetNs,
    etcdNs: NetNs,
    directory: string,
  ) {
    this.hosts = hosts;
    this.etcd = etcd;
    this.underlay = underlay;
    this.#etcdNs = etcdNs;
    this.#directory = directory;
  }

  /** @param config the network config, an object or text; absent: none is written. */
  static async create(count: number, config?: unknown): Promise<Cluster> {
    const directory = await mkdtemp(join(tmpdir(), 'pwio-'));
    const underlay = await NetNs.create('io', 'net');
    await ipBatch(underlay, ['link add br0 type bridge mcast_snooping 0', 'link set br0 up']);
    const attach = async (ns: NetNs, port: string, number: number): Promise<void> => {
      await veth({ ns: underlay, name: port }, { ns, name: 'eth0', address: `10.77.0.${String(number)}/24` });
      await underlay.ip('link', 'set', port, 'master', 'br0');
      await ns.ip('address', 'add', `fd77::${String(number)}/64`, 'dev', 'eth0', 'nodad');
    };
    const etcdNs = await NetNs.create('io', 'etcd');
    await attach(etcdNs, 'etcd', 250);
    const etcd = new EtcdServer(etcdNs, '10.77.0.250', join(directory, 'etcd'));
    const hosts: ClusterHost[] = [];
    const cluster = new Cluster(hosts, etcd, underlay, etcdNs, directory);
    Cluster.#live.add(cluster);
    try {
      const started = etcd.start();
      for (let number = 1; number <= count; number += 1) {
        const ns = await NetNs.create('io', `h${String(number)}`);
        const podNs = await NetNs.create('io', `p${String(number)}`);
        const run = join(directory, `h${String(number)}`);
        await mkdir(run);
        hosts.push(new ClusterHost(number, ns, podNs, run, etcd.url));
        await attach(ns, `h${String(number)}`, number);
      }
      await started;
      if (config !== undefined) await etcd.setConfig(config);
    } catch (error) {
      await cluster[Symbol.asyncDispose]();
      throw error;
    }
    return cluster;
  }

  /** For `afterAll`: what is left of tests that ran out of time, whose own disposal never comes. */
  static async disposeAll(): Promise<void> {
    for (const cluster of Cluster.#live) await cluster[Symbol.asyncDispose]();
  }

  host(number: number): ClusterHost {
    const host = this.hosts[number - 1];
    if (host === undefined) throw new Error(`there is no host ${String(number)}`);
    return host;
  }

  /** Cuts a host or etcd off the underlay, or joins it again. */
  async setPort(port: string, state: 'up' | 'down'): Promise<void> {
    await this.underlay.ip('link', 'set', port, state);
  }

  leases(): Promise<StoredLease[]> {
    return this.etcd.leases();
  }

  /** `10.42.7.0-24` by PublicIP: who holds what. */
  async holders(): Promise<Record<string, string>> {
    return Object.fromEntries((await this.leases()).map(({ name, publicIp }) => [publicIp ?? name, name]));
  }

  /** The pods of the hosts, each of which has one. */
  pods(hosts: readonly ClusterHost[] = this.hosts): Pod[] {
    return hosts.map(({ pod, number }) => {
      if (pod === undefined) throw new Error(`host ${String(number)} has no pod`);
      return pod;
    });
  }

  /** Waits until every pod hears from every other one, over each family that both have. */
  async connected(hosts: readonly ClusterHost[] = this.hosts, timeoutMs = 10_000): Promise<void> {
    for (const [from, host] of pairs(this.pods(hosts))) {
      await until(async () => (await from.call('datagrams', { host, sizes: [64], timeoutMs: 300 })).length === 1, {
        what: `${from.address} to hear from ${host}`,
        timeoutMs,
      });
    }
  }

  /**
   * Every pod reaches every other one over each family: by ping, by datagrams up to beyond the MTU, and by TCP both
   * ways with every byte compared. The pairs wait for nothing: call {@link connected} first where routes may lag.
   */
  async reachable(hosts: readonly ClusterHost[] = this.hosts, bytes = 4_000_000): Promise<void> {
    const sizes = [1, 512, 1400, 1600, 4000];
    const all = pairs(this.pods(hosts));
    await Promise.all(
      all.map(async ([from, host]) => {
        await from.ns.ok('ping', ['-c', '2', '-i', '0.1', '-W', '2', '-n', '-s', '1000', host]);
      }),
    );
    await Promise.all(
      all.map(async ([from, host]) => {
        // A path MTU below the pod's costs one datagram each way (flannel-v6.1 has 1430 bytes, FLANNEL_MTU says 1450).
        let left: readonly number[] = sizes;
        for (let round = 0; round < 3 && left.length > 0; round += 1) {
          const answered = await from.call('datagrams', { host, sizes: left, timeoutMs: 300 + round * 500 });
          left = left.filter((size) => !answered.includes(size));
        }
        if (left.length > 0) throw new Error(`no echo of ${left.join(', ')} bytes from ${host} to ${from.address}`);
      }),
    );
    for (const [from, host] of all) {
      const { received, wrong } = await from.call('transfer', { host, bytes, timeoutMs: 5000 });
      if (received !== bytes || wrong >= 0) {
        throw new Error(`TCP ${from.address} to ${host}: ${String(received)} bytes, first wrong at ${String(wrong)}`);
      }
    }
  }

  /** Counts lost echoes of all pairs while `work` runs; the keys are `10.42.1.2 -> 10.42.2.2`. */
  async pinging(
    work: () => Promise<void>,
    { hosts = this.hosts, intervalMs = 5 }: { hosts?: readonly ClusterHost[]; intervalMs?: number } = {},
  ): Promise<Record<string, PingCount>> {
    const pods = this.pods(hosts);
    for (const pod of pods) {
      const targets = pairs(pods).flatMap(([from, host]) => (from === pod ? [host] : []));
      await pod.call('startPings', { hosts: targets, intervalMs });
    }
    const stop = (): Promise<Record<string, PingCount>[]> => Promise.all(pods.map((pod) => pod.call('stopPings', {})));
    try {
      await work();
    } catch (error) {
      await stop().catch(() => {});
      throw error;
    }
    const stopped = (await stop()).flatMap((counts, index) =>
      Object.entries(counts).map(([host, count]) => [`${pods[index]?.address ?? ''} -> ${host}`, count] as const),
    );
    return Object.fromEntries(stopped);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (!Cluster.#live.delete(this)) return;
    for (const host of this.hosts) await host[Symbol.asyncDispose]();
    await this.etcd.stop('SIGKILL');
    await this.#etcdNs[Symbol.asyncDispose]();
    await this.underlay[Symbol.asyncDispose]();
    await rm(this.#directory, { recursive: true, force: true });
  }
}

/** Every pod with every address of every other one, of the families it has itself. */
function pairs(pods: readonly Pod[]): (readonly [Pod, string])[] {
  return pods.flatMap((from) =>
    pods
      .filter((to) => to !== from)
      .flatMap((to) => to.addresses.slice(0, from.addresses.length).map((host) => [from, host] as const)),
  );
}
