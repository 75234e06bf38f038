import type { FirewallNotice, FirewallStats, HostFirewallOptions, HostPlan } from '../../src/host/firewall/firewall.js';
import { NetNs, veth } from './netns.js';
import { type Process, root, until } from './process.js';
import type { Needs } from './requires.js';

/** nft and both flavours of iptables, as .ci/run installs them. */
export const FIREWALL_NEEDS: Needs = {
  root: true,
  commands: ['ip', 'ping', 'nft', 'iptables-nft', 'iptables-legacy', 'ip6tables-nft', 'ip6tables-legacy'],
  files: ['dist/host/firewall/firewall.js'],
};

export type Plan = Omit<HostPlan, 'networks' | 'subnets'> & {
  readonly networks: readonly string[];
  readonly subnets: readonly string[];
};

/** flannel's example network: masquerade and forward rules of one host. */
export const PLAN: Plan = {
  networks: ['10.42.0.0/16'],
  subnets: ['10.42.1.0/24'],
  masquerade: true,
  forward: true,
  randomFully: true,
  blackhole: false,
};

export const DUAL_PLAN: Plan = {
  ...PLAN,
  networks: ['10.42.0.0/16', 'fd42::/48'],
  subnets: ['10.42.1.0/24', 'fd42:0:0:1::/64'],
};

type OpenOptions = Partial<Omit<HostFirewallOptions, 'runner' | 'onNotice' | 'previousNetworks'>> & {
  readonly previousNetworks?: readonly string[];
};

/** A HostFirewall that lives in a namespace. Disposing kills its process, and leaves the rules to the namespace. */
export class RemoteFirewall implements AsyncDisposable {
  readonly process: Process;
  readonly notices: FirewallNotice[] = [];
  readonly #waiting = new Map<number, (message: { value?: unknown; error?: string }) => void>();
  #rest = '';
  #id = 0;

  private constructor(process: Process) {
    this.process = process;
    process.child.stdout?.on('data', (text: string) => {
      const lines = `${this.#rest}${text}`.split('\n');
      this.#rest = lines.pop() ?? '';
      for (const line of lines) this.#take(line);
    });
    void process.finished.then(({ stderr }) => {
      for (const answer of this.#waiting.values()) answer({ error: `the process has ended: ${stderr}` });
      return this.#waiting.clear();
    });
  }

  /** @param through a program and arguments to run Node with. */
  static async open(
    ns: NetNs,
    options: OpenOptions = {},
    environment: NodeJS.ProcessEnv = {},
    through: readonly string[] = [],
  ): Promise<RemoteFirewall> {
    const words = [...through, process.execPath, `${root}/test/support/firewall-host.mjs`];
    const process_ = ns.spawn(words[0] ?? '', words.slice(1), {
      stdio: ['pipe', 'pipe', 'pipe'],
      env: { ...process.env, ...environment },
    });
    const firewall = new RemoteFirewall(process_);
    // An hour between checks: what is repaired in a test was heard as an event.
    await firewall.#call('open', { manager: 'auto', key: 'default', resyncMs: 3_600_000, ...options });
    return firewall;
  }

  /** Opens, applies, and waits until the kernel's events arrive where they can. */
  static async start(ns: NetNs, options: OpenOptions = {}, plan: Plan = PLAN): Promise<RemoteFirewall> {
    const firewall = await RemoteFirewall.open(ns, options);
    await firewall.apply(plan);
    await firewall.listening();
    return firewall;
  }

  apply(plan: Plan): Promise<boolean> {
    return this.#call('apply', plan) as Promise<boolean>;
  }

  stats(): Promise<FirewallStats> {
    return this.#call('stats', {}) as Promise<FirewallStats>;
  }

  async listening(): Promise<void> {
    await until(async () => (await this.stats()).watch === 'events', { what: 'firewall events' });
    // The check that follows has looked at everything.
    const { checks } = await this.stats();
    if (checks < 2) await until(async () => (await this.stats()).checks >= 2, { what: 'the check after that' });
  }

  async close(): Promise<void> {
    await this.#call('close', {});
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.process[Symbol.asyncDispose]();
  }

  #call(call: string, argument: unknown): Promise<unknown> {
    const id = ++this.#id;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, ({ value, error }) => (error === undefined ? resolve(value) : reject(new Error(error))));
      this.process.child.stdin?.write(`${JSON.stringify({ id, call, argument })}\n`);
    });
  }

  #take(line: string): void {
    const message = JSON.parse(line) as { id?: number; value?: unknown; error?: string; notice?: FirewallNotice };
    if (message.notice !== undefined) this.notices.push(message.notice);
    if (message.id === undefined) return;
    this.#waiting.get(message.id)?.(message);
    this.#waiting.delete(message.id);
  }
}

/** Lines of iptables-save that have to do with flannel or podwire, tables named. */
export async function iptablesRules(ns: NetNs, command: string): Promise<string[]> {
  const lines: string[] = [];
  let table = '';
  for (const line of (await ns.ok(`${command}-save`, [])).split('\n')) {
    table = /^\*(\w+)/.exec(line)?.[1] ?? table;
    if (/FLANNEL|flanneld|podwire/.test(line) && !line.startsWith('#')) lines.push(`${table} ${line}`);
  }
  return lines.map((line) => line.replace(/ \[\d+:\d+\]$/, ''));
}

export const nftRules = (ns: NetNs): Promise<string> => ns.ok('nft', ['list', 'ruleset']);

export const legacyTables = async (ns: NetNs): Promise<string> =>
  (await ns.ok('sh', ['-c', 'cat /proc/net/ip_tables_names /proc/net/ip6_tables_names'])).trim();

/**
 * A host with a pod behind it, a host of the outside, and a pod of another host:
 *
 *     pod 10.42.1.2 ─ host ─ outside 192.0.2.2
 *                      └─── remote 10.42.2.2      (the overlay, here a wire; the host's end is 10.42.1.0)
 */
export class FirewallBed implements AsyncDisposable {
  readonly host: NetNs;
  readonly pod: NetNs;
  readonly outside: NetNs;
  readonly remote: NetNs;
  readonly #servers: Process[] = [];

  private constructor(host: NetNs, pod: NetNs, outside: NetNs, remote: NetNs) {
    this.host = host;
    this.pod = pod;
    this.outside = outside;
    this.remote = remote;
  }

  static async create(): Promise<FirewallBed> {
    const [host, pod, outside, remote] = await Promise.all([
      NetNs.create('ru', 'host'),
      NetNs.create('ru', 'pod'),
      NetNs.create('ru', 'out'),
      NetNs.create('ru', 'rem'),
    ]);
    await host.sysctl({ 'net.ipv4.ip_forward': 1, 'net.ipv6.conf.all.forwarding': 1 });
    await veth({ ns: host, name: 'cni0', address: '10.42.1.1/24' }, { ns: pod, name: 'eth0', address: '10.42.1.2/24' });
    await veth(
      { ns: host, name: 'eth0', address: '192.0.2.1/24' },
      { ns: outside, name: 'eth0', address: '192.0.2.2/24' },
    );
    await veth(
      { ns: host, name: 'ovl0', address: '10.42.1.0/32' },
      { ns: remote, name: 'eth0', address: '10.42.2.2/16' },
    );
    for (const [ns, device, address] of [
      [host, 'cni0', 'fd42:0:0:1::1/64'],
      [pod, 'eth0', 'fd42:0:0:1::2/64'],
      [host, 'eth0', '2001:db8::1/64'],
      [outside, 'eth0', '2001:db8::2/64'],
      [host, 'ovl0', 'fd42:0:0:1::/128'],
      [remote, 'eth0', 'fd42:0:0:2::2/48'],
    ] as const) {
      await ns.ip('address', 'add', address, 'dev', device, 'nodad');
    }
    await host.ip('route', 'add', '10.42.0.0/16', 'dev', 'ovl0');
    await host.ip('-6', 'route', 'add', 'fd42::/48', 'dev', 'ovl0');
    // The wire stands for a tunnel: whoever is asked for on it, host and remote answer.
    await host.sysctl({ 'net.ipv4.conf.ovl0.proxy_arp': 1 });
    await remote.ip('route', 'replace', '10.42.1.0/24', 'via', '10.42.1.0', 'dev', 'eth0', 'onlink');
    await remote.ip('-6', 'route', 'replace', 'fd42:0:0:1::/64', 'via', 'fd42:0:0:1::', 'dev', 'eth0', 'onlink');
    for (const [ns, via, via6] of [
      [pod, '10.42.1.1', 'fd42:0:0:1::1'],
      [outside, '192.0.2.1', '2001:db8::1'],
    ] as const) {
      await ns.ip('route', 'add', 'default', 'via', via);
      await ns.ip('-6', 'route', 'add', 'default', 'via', via6);
    }
    const bed = new FirewallBed(host, pod, outside, remote);
    for (const ns of [pod, outside, remote]) {
      const server = ns.spawn(process.execPath, [`${root}/test/support/udp-who.mjs`, 'serve', '::', '5000']);
      bed.#servers.push(server);
      await server.output(/ready/);
    }
    return bed;
  }

  /** The source address with which `to` sees a datagram that `from` sends, or undefined when none comes through. */
  async seenAs(from: NetNs, to: string, source?: string): Promise<string | undefined> {
    const arguments_ = ['ask', to, '5000', ...(source === undefined ? [] : [source])];
    const asked = await from.run(process.execPath, [`${root}/test/support/udp-who.mjs`, ...arguments_]);
    return asked.code === 0 ? asked.stdout.trim().replace(/^::ffff:/, '') : undefined;
  }

  /** Whether one echo request is answered within so many seconds. */
  async pings(from: NetNs, to: string, waitS = 2): Promise<boolean> {
    return (await from.run('ping', ['-c', '1', '-W', String(waitS), '-n', to])).code === 0;
  }

  /** Nothing of any firewall is left. */
  async flush(): Promise<void> {
    await this.host.ok('nft', ['flush', 'ruleset']);
    for (const command of ['iptables-legacy', 'ip6tables-legacy']) {
      const names = command.startsWith('ip6') ? 'ip6_tables_names' : 'ip_tables_names';
      const script =
        `for t in $(cat /proc/net/${names}); do ${command} -t $t -F; ${command} -t $t -X; done; ` +
        `if grep -q filter /proc/net/${names}; then ${command} -P FORWARD ACCEPT; fi`;
      await this.host.ok('sh', ['-c', script]);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const server of this.#servers) await server[Symbol.asyncDispose]();
    for (const ns of [this.host, this.pod, this.outside, this.remote]) await ns[Symbol.asyncDispose]();
  }
}
