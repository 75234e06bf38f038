import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { AgentStatus } from '../../src/agent/status.js';
import { NetNs, veth } from './netns.js';
import { cli, type Finished, type Process, until } from './process.js';
import type { Needs } from './requires.js';

/** What an {@link AgentBed} needs of the machine. */
export const AGENT_NEEDS: Needs = { root: true, tun: true, commands: ['ip', 'ping'], files: ['dist/bundle/main.cjs'] };

export interface AgentHost {
  readonly ns: NetNs;
  /** Its address on eth0. */
  readonly underlay: string;
  /** Its own /run. */
  readonly run: string;
  readonly subnetFile: string;
  /** Its own /var/lib. */
  readonly state: string;
}

/** Two hosts in network namespaces joined by a veth pair, and a store directory that {@link reset} makes anew. */
export class AgentBed implements AsyncDisposable {
  readonly directory: string;
  readonly a: AgentHost;
  readonly b: AgentHost;
  store = '';
  readonly #started: Process[] = [];

  private constructor(directory: string, a: AgentHost, b: AgentHost) {
    this.directory = directory;
    this.a = a;
    this.b = b;
  }

  static async create(): Promise<AgentBed> {
    const directory = await mkdtemp(join(tmpdir(), 'pwagent-'));
    const host = async (label: string, underlay: string): Promise<AgentHost> => {
      const run = join(directory, label);
      return {
        ns: await NetNs.create('agent', label),
        underlay,
        run,
        subnetFile: join(run, 'subnet.env'),
        state: `${run}-state`,
      };
    };
    const [a, b] = [await host('a', '10.77.0.1'), await host('b', '10.77.0.2')];
    await veth(
      { ns: a.ns, name: 'eth0', address: `${a.underlay}/24` },
      { ns: b.ns, name: 'eth0', address: `${b.underlay}/24` },
    );
    return new AgentBed(directory, a, b);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.killAll();
    await this.a.ns[Symbol.asyncDispose]();
    await this.b.ns[Symbol.asyncDispose]();
    await rm(this.directory, { recursive: true, force: true });
  }

  /** A new store with a network config, and empty /run directories. */
  async reset(): Promise<void> {
    this.store = await this.makeStore('{"Network":"10.42.0.0/16","Backend":{"Type":"udp"}}');
    for (const host of [this.a, this.b]) {
      await rm(host.run, { recursive: true, force: true });
      await mkdir(host.run);
      await rm(host.state, { recursive: true, force: true });
    }
  }

  async makeStore(config: string): Promise<string> {
    const store = await mkdtemp(join(this.directory, 'store-'));
    await writeFile(join(store, 'config'), config);
    return store;
  }

  start(host: AgentHost, ...extra: readonly string[]): Process {
    return this.startIn(host, {}, ...extra);
  }

  /** With more variables in its environment, or run by another program that is given with its arguments. */
  startIn(
    host: AgentHost,
    { environment = {}, wrapper = [] }: { environment?: NodeJS.ProcessEnv; wrapper?: readonly string[] },
    ...extra: readonly string[]
  ): Process {
    const [command = process.execPath, ...rest] = wrapper;
    const agent = host.ns.spawn(
      command,
      [
        ...rest,
        ...(wrapper.length === 0 ? [] : [process.execPath]),
        cli,
        'agent',
        `--store=dir:${this.store}`,
        '--iface=eth0',
        `--subnet-file=${host.subnetFile}`,
        `--state-dir=${host.state}`,
        '--log-format=json',
        '--workers=1',
        ...extra,
      ],
      { env: { ...process.env, ...environment } },
    );
    this.#started.push(agent);
    return agent;
  }

  /** Starts an agent and waits until it forwards. */
  async startReady(host: AgentHost, ...extra: readonly string[]): Promise<Process> {
    const agent = this.start(host, ...extra);
    await ready(agent);
    return agent;
  }

  startBoth(...extra: readonly string[]): Promise<[Process, Process]> {
    return Promise.all([this.startReady(this.a, ...extra), this.startReady(this.b, ...extra)]);
  }

  async killAll(): Promise<void> {
    for (const agent of this.#started.splice(0)) await agent[Symbol.asyncDispose]();
  }

  async leases(): Promise<string[]> {
    const names = await readdir(join(this.store, 'subnets')).catch(() => []);
    return names.filter((name) => /^\d/.test(name)).sort();
  }

  /** Both hosts know each other and packets pass both ways. */
  async connected(): Promise<void> {
    const { a, b } = this;
    await until(async () => (await pings(a, b)) && (await pings(b, a)), { what: 'ping both ways' });
  }
}

export const ready = (agent: Process): Promise<RegExpExecArray> => agent.output(/"msg":"ready"/, { from: 'stderr' });

/** The messages of the error lines; a line that is no JSON counts as one. */
export function errorsOf(finished: Pick<Finished, 'stderr'>): string[] {
  return linesOf(finished, 'error');
}

/** What an agent has logged at one level so far. */
export function linesOf(finished: Pick<Finished, 'stderr'>, level: string): string[] {
  return finished.stderr
    .trim()
    .split('\n')
    .map((line) => (line.startsWith('{') ? (JSON.parse(line) as LogRecord) : { level: 'error', msg: line }))
    .filter((record) => record.level === level)
    .map((record) => record.msg);
}

interface LogRecord {
  readonly level: string;
  readonly msg: string;
}

export async function statusOf(host: AgentHost): Promise<AgentStatus> {
  const args = [cli, 'status', '--json', `--subnet-file=${host.subnetFile}`];
  return JSON.parse(await host.ns.ok(process.execPath, args)) as AgentStatus;
}

export const subnetEnv = (host: AgentHost): Promise<string> => readFile(host.subnetFile, 'utf8');

/** `10.42.7` of `FLANNEL_SUBNET=10.42.7.1/24`. */
export async function subnetBase(host: AgentHost): Promise<string> {
  return /FLANNEL_SUBNET=(\d+\.\d+\.\d+)\.1\/24\n/.exec(await subnetEnv(host))?.[1] ?? 'none';
}

/** Names of the interfaces, sorted. */
export async function links(host: AgentHost): Promise<string[]> {
  const found = JSON.parse(await host.ns.ip('-j', 'link', 'show')) as { ifname: string }[];
  return found.map(({ ifname }) => ifname).sort();
}

export const routes = (host: AgentHost): Promise<string> => host.ns.ip('-N', 'route', 'show');

/** From the TUN address of one host to the other's: through both data planes and back. */
async function pings(from: AgentHost, to: AgentHost): Promise<boolean> {
  const target = `${await subnetBase(to)}.0`;
  return (await from.ns.run('ping', ['-c', '1', '-W', '1', '-n', target])).code === 0;
}
