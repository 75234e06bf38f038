/**
 * What joins the lab's hosts: in the product one `podwire agent` process each. The interface exists so that a test can
 * put plain kernel routes in the agents' place and prove the lab's own topology and checks.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import { mkdir, open, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { askControlSocket } from '../../agent/control-socket.js';
import type { AgentStatus } from '../../agent/status.js';
import { errnoOf, messageOf, PodwireError } from '../../errors.js';
import { parseDotenv } from '../../host/subnet-env.js';
import { Address, Prefix } from '../../net/prefix.js';
import { NETWORK, type HostPlace } from './topology.js';

/** What a host got: the values of its subnet.env. */
export interface Joined {
  readonly subnet: Prefix;
  /** The bridge's address, as FLANNEL_SUBNET gives it. */
  readonly gateway: Address;
  /** Overlay MTU in bytes. */
  readonly mtu: number;
}

export interface NodeStatus {
  /** Subnets of the other hosts that are routed, as text. */
  readonly routed: readonly string[];
  /** Counters by name: `egressPackets`, `dropNoRoute`, … */
  readonly totals: Readonly<Record<string, number>>;
  /** The same, by worker. */
  readonly workers: readonly Readonly<Record<string, number>>[];
}

export interface OverlayNode extends Joined, AsyncDisposable {
  status(): Promise<NodeStatus>;
  /** Gives the lease back and stops. */
  leave(): Promise<void>;
  /** Where its output goes and how to ask it, for a person who wants to look. */
  readonly hints: readonly string[];
  /** Rejects if the node ends by itself; never resolves. */
  readonly failed: Promise<never>;
}

export interface Overlay {
  /** For the heading: `udp, 2 workers`. */
  readonly description: string;
  /** Starts a node; gives up with the signal's reason. */
  join(host: HostPlace, signal: AbortSignal): Promise<OverlayNode>;
}

const CLI = fileURLToPath(new URL('../main.js', import.meta.url));
const JOIN_TIMEOUT_MS = 20_000;
const STOP_TIMEOUT_MS = 3_000;
const LOG_LINES = 3;

/** One `podwire agent` process a host, leases in a directory store below `directory`. */
export class AgentOverlay implements Overlay {
  readonly description: string;
  readonly #directory: string;
  readonly #workers: string;

  private constructor(directory: string, workers: string) {
    this.#directory = directory;
    this.#workers = workers;
    this.description = `podwire agent, udp, workers ${workers}`;
  }

  /** Writes the network config. @param workers as `podwire agent --workers` takes it */
  static async create(directory: string, workers: string): Promise<AgentOverlay> {
    const config = { Network: NETWORK.toString(), SubnetLen: 24, Backend: { Type: 'udp' } };
    await mkdir(join(directory, 'store'), { recursive: true });
    await writeFile(join(directory, 'store/config'), `${JSON.stringify(config)}\n`);
    return new AgentOverlay(directory, workers);
  }

  async join(host: HostPlace, signal: AbortSignal): Promise<OverlayNode> {
    const home = join(this.#directory, `h${String(host.number)}`);
    await mkdir(home, { recursive: true });
    const agent = await AgentProcess.start(host, home, [
      `--store=dir:${join(this.#directory, 'store')}`,
      '--iface=eth0',
      `--workers=${this.#workers}`,
      '--log-format=pretty',
      '--release-on-exit=true',
    ]);
    try {
      return new AgentNode(agent, await agent.joined(signal));
    } catch (error) {
      await agent[Symbol.asyncDispose]();
      throw error;
    }
  }
}

class AgentNode implements OverlayNode {
  readonly subnet: Prefix;
  readonly gateway: Address;
  readonly mtu: number;
  readonly hints: readonly string[];
  readonly failed: Promise<never>;
  readonly #agent: AgentProcess;

  constructor(agent: AgentProcess, joined: Joined) {
    this.#agent = agent;
    this.subnet = joined.subnet;
    this.gateway = joined.gateway;
    this.mtu = joined.mtu;
    this.hints = agent.hints;
    this.failed = agent.failed;
  }

  async status(): Promise<NodeStatus> {
    const { leases, dataplane } = await this.#agent.status();
    return {
      routed: leases.filter((lease) => lease.state === 'routed').map((lease) => lease.subnet),
      totals: dataplane?.totals ?? {},
      workers: dataplane?.workers.map((worker) => worker.counters) ?? [],
    };
  }

  async leave(): Promise<void> {
    await this.#agent.stop();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#agent[Symbol.asyncDispose]();
  }
}

/** The process, its files and its end. */
class AgentProcess implements AsyncDisposable {
  readonly hints: readonly string[];
  readonly failed: Promise<never>;
  readonly #host: HostPlace;
  readonly #child: ChildProcess;
  readonly #ended: Promise<string>;
  readonly #subnetFile: string;
  readonly #socket: string;
  readonly #log: string;
  #stopping = false;

  private constructor(host: HostPlace, home: string, child: ChildProcess) {
    this.#host = host;
    this.#child = child;
    this.#subnetFile = join(home, 'subnet.env');
    this.#socket = join(home, 'agent.sock');
    this.#log = join(home, 'agent.log');
    this.hints = [`${process.execPath} ${CLI} status --control-socket ${this.#socket}`, `tail -f ${this.#log}`];
    this.#ended = new Promise((resolve) => {
      child.once('error', (error) => resolve(messageOf(error)));
      child.once('exit', (code, signal) => resolve(signal ?? `exit code ${String(code)}`));
    });
    this.failed = this.#ended.then(async (how) => {
      // An agent that was asked to stop has not failed: nobody learns anything more from this promise.
      if (this.#stopping) return await new Promise<never>(() => {});
      throw new PodwireError(
        'COMMAND_FAILED',
        `the agent of host ${String(host.number)} ended (${how}): ${await this.#said()}`,
      );
    });
    this.failed.catch(() => {});
  }

  static async start(host: HostPlace, home: string, args: readonly string[]): Promise<AgentProcess> {
    const paths = { '--subnet-file': 'subnet.env', '--control-socket': 'agent.sock', '--state-dir': 'state' };
    const files = Object.entries(paths).flatMap(([flag, name]) => [flag, join(home, name)]);
    const log = await open(join(home, 'agent.log'), 'a');
    try {
      const command = ['netns', 'exec', host.netns, process.execPath, CLI, 'agent', ...args, ...files];
      // Its own process group, so that a terminal's Ctrl-C leaves the clean-up to the lab.
      const child = spawn('ip', command, { stdio: ['ignore', log.fd, log.fd], detached: true });
      return new AgentProcess(host, home, child);
    } finally {
      await log.close();
    }
  }

  /** The last lines of its log, as one. */
  async #said(): Promise<string> {
    const text = await readFile(this.#log, 'utf8').catch(() => '');
    const lines = text.trim().split('\n').slice(-LOG_LINES);
    return lines.join(' | ') || 'it said nothing';
  }

  /** Waits for subnet.env and for the status socket. */
  async joined(signal: AbortSignal): Promise<Joined> {
    const deadline = performance.now() + JOIN_TIMEOUT_MS;
    for (;;) {
      signal.throwIfAborted();
      const joined = await this.#readSubnetFile();
      if (joined !== undefined && (await this.status().catch(() => undefined)) !== undefined) return joined;
      if (performance.now() > deadline) {
        throw new PodwireError(
          'COMMAND_FAILED',
          `the agent of host ${String(this.#host.number)} was not ready within ${String(JOIN_TIMEOUT_MS / 1000)} s: ${await this.#said()}`,
        );
      }
      await Promise.race([sleep(20), this.failed]);
    }
  }

  async #readSubnetFile(): Promise<Joined | undefined> {
    let text: string;
    try {
      text = await readFile(this.#subnetFile, 'utf8');
    } catch (error) {
      if (errnoOf(error) === 'ENOENT') return undefined;
      throw error;
    }
    const values = parseDotenv(text);
    const subnet = values.get('FLANNEL_SUBNET') ?? '';
    const mtu = Number(values.get('FLANNEL_MTU'));
    return { subnet: Prefix.parse(subnet), gateway: Address.parse(subnet.replace(/\/.*$/, '')), mtu };
  }

  async status(): Promise<AgentStatus> {
    return (await askControlSocket(this.#socket, '/v1/status')) as AgentStatus;
  }

  /** SIGTERM, then SIGKILL. */
  async stop(): Promise<void> {
    this.#stopping = true;
    this.#child.kill('SIGTERM');
    const timer = setTimeout(() => this.#child.kill('SIGKILL'), STOP_TIMEOUT_MS);
    await this.#ended;
    clearTimeout(timer);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }
}
