// @ts-check
/** A contender that runs on its topology, with pods that reach each other: what the measurements get. */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { Daemon, run, waitFor } from './process.mjs';
import { Topology } from './topology.mjs';

const PORT = '9001';

export class Bed {
  /**
   * @param {Topology} topology
   * @param {import('../contenders/contender.mjs').Session} session
   * @param {import('./native.mjs').Tools} tools
   * @param {string} workDir
   * @param {AbortSignal} signal
   */
  constructor(topology, session, tools, workDir, signal) {
    this.topology = topology;
    this.session = session;
    this.tools = tools;
    this.workDir = workDir;
    this.signal = signal;
    this.tunnelPids = session.daemons.map((daemon) => daemon.pid);
  }

  /** The pod that sends. */
  get client() {
    return this.topology.hosts[0];
  }

  /** The pod that receives. */
  get server() {
    return this.topology.hosts[1];
  }

  /**
   * Runs one of the load tools in the client's pod.
   * @param {'pps' | 'rtt'} tool
   * @param {string} command
   * @param {Record<string, string | number>} options
   * @param {number} timeoutMs
   * @returns {Promise<any>} its JSON
   */
  async clientTool(tool, command, options, timeoutMs) {
    const argv = [this.tools[tool], command, ...toArguments({ to: this.server.podAddress, port: PORT, ...options })];
    const { stdout } = await run(argv, { namespace: this.client.podNetns, timeoutMs, signal: this.signal });
    return JSON.parse(stdout);
  }

  /**
   * Runs a load tool in the server's pod as long as the body takes; it is bound when the body starts.
   * @template T
   * @param {'pps' | 'rtt'} tool
   * @param {string} command
   * @param {number} seconds after which it ends by itself
   * @param {() => Promise<T>} body
   * @returns {Promise<{ result: T, server: any }>} the body's result and the tool's JSON
   */
  async withServerTool(tool, command, seconds, body) {
    const argv = [this.tools[tool], command, ...toArguments({ bind: this.server.podAddress, port: PORT, seconds })];
    const { value, output } = await this.withServer(
      `${tool} ${command}`,
      argv,
      (daemon) => daemon.output().includes('ready'),
      body,
    );
    const answer = output.split('\n').find((line) => line.startsWith('{'));
    return { result: value, server: JSON.parse(answer ?? 'null') };
  }

  /**
   * Runs a program in the server's pod as long as the body takes.
   * @template T
   * @param {string} name
   * @param {readonly string[]} argv
   * @param {(daemon: Daemon) => boolean} ready
   * @param {() => Promise<T>} body
   */
  async withServer(name, argv, ready, body) {
    const logFile = join(this.workDir, `server-${name.replaceAll(' ', '-')}-${(this.#servers += 1)}.log`);
    const daemon = new Daemon(name, argv, { namespace: this.server.podNetns, logFile });
    try {
      await waitFor(`${name} to be ready`, () => ready(daemon), { signal: this.signal, alive: [daemon] });
      const value = await body();
      await daemon.stop();
      return { value, output: daemon.output() };
    } finally {
      await daemon.stop();
    }
  }
  #servers = 0;

  /** Waits until a datagram of the client's pod is answered by the server's. */
  async waitUntilReachable() {
    await this.withServerTool('rtt', 'echo', 60, () =>
      waitFor(
        'the pods to reach each other',
        () => this.clientTool('rtt', 'ping', { seconds: 1, warmup: 0, count: 1 }, 5000).catch(() => undefined),
        { signal: this.signal, alive: this.session.daemons, timeoutMs: 20_000 },
      ),
    );
  }

  /**
   * Load that is not measured, so that just-in-time compilers and caches are where they are in steady state.
   * @param {number} seconds
   */
  async warmUp(seconds) {
    await this.withServerTool('pps', 'receive', seconds + 5, () =>
      this.clientTool('pps', 'send', { size: 64, seconds, rate: 20_000 }, (seconds + 10) * 1000),
    );
  }
}

/** @param {Record<string, string | number>} options */
function toArguments(options) {
  return Object.entries(options).flatMap(([name, value]) => [`--${name}`, String(value)]);
}

/**
 * Starts a contender on a new topology, hands it to the body, and removes everything again.
 * @param {import('../contenders/contender.mjs').Contender} contender
 * @param {import('./topology.mjs').Underlay} underlay
 * @param {{ tools: import('./native.mjs').Tools, workDir: string, signal: AbortSignal }} context
 * @param {(bed: Bed) => Promise<void>} body
 * @returns {Promise<string[]>} what went wrong at the end
 */
export async function withBed(contender, underlay, { tools, workDir, signal }, body) {
  mkdirSync(workDir, { recursive: true });
  /** @type {string[]} */
  const problems = [];
  const topology = await Topology.create(underlay, signal, contender.family);
  try {
    const session = await contender.start(topology, { workDir, signal });
    try {
      await topology.attachPods(session.subnets);
      const bed = new Bed(topology, session, tools, workDir, signal);
      await bed.waitUntilReachable();
      await body(bed);
    } finally {
      problems.push(...(await session.stop()));
    }
  } finally {
    problems.push(...(await topology.destroy()));
  }
  return problems;
}
