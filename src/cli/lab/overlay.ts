/**
 * What joins the lab's hosts: in the product one `podwire agent` process each. The interface exists so that a test can
 * put plain kernel routes in the agents' place and prove the lab's own topology and checks.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import { mkdir, open, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { askControlSocket } from '../../agent/control-socket.js';
import type { AgentStatus } from '../../agent/status.js';
import { errnoOf, messageOf, PodwireError } from '../../errors.js';
import { parseDotenv } from '../../host/subnet-env.js';
import { run } from '../../host/exec.js';
import { Address, Prefix } from '../../net/prefix.js';
import { PODWIRE } from '../programs.js';
import type { LabBackend, OverlayTraits } from './backends.js';
import type { HostPlace, PlacedAddress } from './topology.js';

/** What a host got: the values of its subnet.env. */
export interface Joined {
  /** Of the first family. */
  readonly subnet: Prefix;
  /** The bridge's addresses, as FLANNEL_SUBNET and FLANNEL_IPV6_SUBNET give them. */
  readonly gateways: readonly PlacedAddress[];
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
  readonly traits: OverlayTraits;
  /** For the heading: `udp, 2 workers`. */
  readonly description: string;
  /** Starts a node; gives up with the signal's reason. */
  join(host: HostPlace, signal: AbortSignal): Promise<OverlayNode>;
}

const JOIN_TIMEOUT_MS = 20_000;
const STOP_TIMEOUT_MS = 3_000;
const LOG_LINES = 3;
/** `ip netns exec` has made a mount namespace already. */
const OWN_SOCKETS = 'mkdir -p "$0" /var/run/wireguard && mount --bind "$0" /var/run/wireguard && exec "$@"';

/** One `podwire agent` process a host, leases in a directory store below `directory`. */
export class AgentOverlay implements Overlay {
  readonly description: string;
  readonly traits: OverlayTraits;
  readonly #directory: string;
  readonly #workers: string;
  readonly #backend: LabBackend;

  private constructor(directory: string, workers: string, backend: LabBackend) {
    this.#directory = directory;
    this.#workers = workers;
    this.#backend = backend;
    this.traits = backend.traits;
    this.description = `podwire agent, ${backend.description}${backend.traits.isKernel ? '' : `, workers ${workers}`}`;
  }

  /** Writes the network config. @param workers as `podwire agent --workers` takes it */
  static async create(directory: string, workers: string, backend: LabBackend): Promise<AgentOverlay> {
    await mkdir(join(directory, 'store'), { recursive: true });
    await writeFile(join(directory, 'store/config'), `${JSON.stringify(backend.config)}\n`);
    return new AgentOverlay(directory, workers, backend);
  }

  async join(host: HostPlace, signal: AbortSignal): Promise<OverlayNode> {
    const home = join(this.#directory, `h${String(host.number)}`);
    await mkdir(home, { recursive: true });
    const agent = await AgentProcess.start(host, home, this.#backend, [
      `--store=dir:${join(this.#directory, 'store')}`,
      '--iface=eth0',
      `--workers=${this.#workers}`,
      '--log-format=pretty',
      '--release-on-exit=true',
    ]);
    try {
      return new AgentNode(agent, await agent.joined(signal), host, this.#backend);
    } catch (error) {
      await agent[Symbol.asyncDispose]();
      throw error;
    }
  }
}

class AgentNode implements OverlayNode {
  readonly subnet: Prefix;
  readonly gateways: readonly PlacedAddress[];
  readonly mtu: number;
  readonly hints: readonly string[];
  readonly failed: Promise<never>;
  readonly #agent: AgentProcess;
  readonly #host: HostPlace;

  constructor(agent: AgentProcess, joined: Joined, host: HostPlace, backend: LabBackend) {
    this.#agent = agent;
    this.#host = host;
    this.subnet = joined.subnet;
    this.gateways = joined.gateways;
    this.mtu = joined.mtu;
    this.hints = [`ip netns exec ${host.netns} tcpdump -ni eth0 '${backend.filter}'`, ...agent.hints];
    this.failed = agent.failed;
  }

  async status(): Promise<NodeStatus> {
    const { leases, dataplane, device } = await this.#agent.status();
    const routed = leases.filter((lease) => lease.state === 'routed').map((lease) => lease.subnet);
    if (dataplane === undefined) {
      return { routed, totals: await deviceCounters(this.#host.netns, device.name), workers: [] };
    }
    return {
      routed,
      totals: dataplane.totals,
      workers: dataplane.workers.map((worker) => worker.counters),
    };
  }

  async leave(): Promise<void> {
    await this.#agent.stop();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#agent[Symbol.asyncDispose]();
  }
}

/** Where the kernel carries the packets, its device counts them. */
async function deviceCounters(netns: string, device: string): Promise<Record<string, number>> {
  const text = await run('ip', ['-n', netns, '-j', '-s', 'link', 'show', 'dev', device]);
  const [link] = JSON.parse(text) as [{ stats64: Record<'rx' | 'tx', { packets: number; bytes: number }> }];
  const { rx, tx } = link.stats64;
  return {
    egressPackets: tx.packets,
    egressBytes: tx.bytes,
    ingressPackets: rx.packets,
    ingressBytes: rx.bytes,
  };
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
    this.hints = [`${process.execPath} ${PODWIRE} status --control-socket ${this.#socket}`, `tail -f ${this.#log}`];
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

  static async start(
    host: HostPlace,
    home: string,
    backend: LabBackend,
    args: readonly string[],
  ): Promise<AgentProcess> {
    const paths = { '--subnet-file': 'subnet.env', '--control-socket': 'agent.sock', '--state-dir': 'state' };
    const files = Object.entries(paths).flatMap(([flag, name]) => [flag, join(home, name)]);
    const log = await open(join(home, 'agent.log'), 'a');
    try {
      const agent = [process.execPath, PODWIRE, 'agent', ...args, ...files];
      const sockets = join(home, 'wireguard');
      const inside = backend.ownWireguardSockets ? ['sh', '-c', OWN_SOCKETS, sockets, ...agent] : agent;
      const command = ['netns', 'exec', host.netns, ...inside];
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
    const texts = [values.get('FLANNEL_SUBNET'), values.get('FLANNEL_IPV6_SUBNET')].filter(
      (text) => text !== undefined,
    );
    const gateways = texts.map((text) => {
      const [address = '', length] = text.split('/');
      return { address: Address.parse(address), length: Number(length) };
    });
    return { subnet: Prefix.parse(texts[0] ?? ''), gateways, mtu: Number(values.get('FLANNEL_MTU')) };
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
