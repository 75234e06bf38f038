import { isDeepStrictEqual } from 'node:util';
import type { DataplaneOptions, DataplaneStats } from '../../src/dataplane/dataplane.js';
import type { Capabilities } from '../../src/io/ports.js';
import type { NetNs } from './netns.js';
import type { Process } from './process.js';
import { root, until } from './process.js';

/** A call that the other process answered with an error. */
export class RemoteError extends Error {
  readonly code: string | undefined;
  readonly errno: string | undefined;
  readonly syscall: string | undefined;

  constructor(error: { message: string; code?: string; errno?: string; syscall?: string }) {
    super(error.message);
    this.name = 'RemoteError';
    this.code = error.code;
    this.errno = error.errno;
    this.syscall = error.syscall;
  }
}

interface Message {
  readonly id?: number;
  readonly value?: unknown;
  readonly error?: { message: string; code?: string };
  readonly event?: string;
  readonly level?: string;
  readonly text?: string;
  readonly sent?: number;
}

export interface Opened {
  readonly device: { readonly name: string; readonly index: number };
  readonly capabilities: Capabilities;
  readonly mtu: { readonly underlay: number; readonly overlay: number; readonly overhead: number };
}

export interface Datagram {
  readonly from: string;
  readonly port: number;
  readonly length: number;
  readonly hex: string;
}

export interface Hashed {
  readonly bytes: number;
  readonly hash: string;
}

type OpenOptions = Omit<DataplaneOptions, 'logger' | 'configuredMtu'>;

/** remote-host.mjs in a namespace, and its functions. Disposing kills it. */
export class Remote implements AsyncDisposable {
  readonly process: Process;
  /** Everything it said that is not an answer, oldest first. */
  readonly events: Message[] = [];
  /** Lines that are not ours, such as those of --trace-gc. */
  readonly foreign: string[] = [];
  #rest = '';
  #id = 0;
  readonly #waiting = new Map<number, { resolve: (value: unknown) => void; reject: (error: Error) => void }>();

  private constructor(process: Process) {
    this.process = process;
    process.child.stdout?.on('data', (text: string) => this.#take(text));
    void process.finished.then(({ code, signal, stderr }) => {
      for (const { reject } of this.#waiting.values()) {
        reject(new Error(`the remote host ended (${String(signal ?? code)}) without an answer\n${stderr}`));
      }
      this.#waiting.clear();
    });
  }

  /**
   * @param node options of Node itself
   * @param through a program and arguments to run Node with, such as `setpriv …`
   */
  static async start(ns: NetNs, node: readonly string[] = [], through: readonly string[] = []): Promise<Remote> {
    const script = `${root}/test/support/remote-host.mjs`;
    // `env` only runs what follows, so that it can be another program than Node.
    const args = [...through, process.execPath, ...node, script];
    const remote = new Remote(ns.spawn('env', args, { stdio: ['pipe', 'pipe', 'pipe'] }));
    await remote.event('ready');
    return remote;
  }

  #take(text: string): void {
    const lines = (this.#rest + text).split('\n');
    this.#rest = lines.pop() ?? '';
    for (const line of lines) {
      if (!line.startsWith('{')) {
        this.foreign.push(line);
        continue;
      }
      const message = JSON.parse(line) as Message;
      if (message.id === undefined) {
        this.events.push(message);
        continue;
      }
      const waiting = this.#waiting.get(message.id);
      this.#waiting.delete(message.id);
      if (message.error === undefined) waiting?.resolve(message.value);
      else waiting?.reject(new RemoteError(message.error));
    }
  }

  /** Calls a function of remote-host.mjs. @throws RemoteError what it threw */
  async call<T>(name: string, given: object = {}): Promise<T> {
    const id = ++this.#id;
    const answer = new Promise<unknown>((resolve, reject) => this.#waiting.set(id, { resolve, reject }));
    this.process.child.stdin?.write(`${JSON.stringify({ id, call: name, with: given })}\n`);
    return (await answer) as T;
  }

  /** Waits for an event. */
  async event(name: string, timeoutMs = 20_000): Promise<Message> {
    return await until(
      () => {
        const found = this.events.find((one) => one.event === name);
        if (found === undefined && !this.process.running) {
          throw new Error(`the remote host ended before '${name}':\n${this.process.stderr}`);
        }
        return found;
      },
      { what: `event '${name}'`, timeoutMs },
    );
  }

  open(options: OpenOptions): Promise<Opened> {
    return this.call('open', options);
  }
  /** Replaces the routes: prefix, and next hop as an address or with more about it. */
  routes(routes: readonly (readonly [string, string | object])[]): Promise<void> {
    const full = routes.map(([prefix, hop]) => [prefix, typeof hop === 'string' ? { address: hop } : hop]);
    return this.call('routes', { routes: full });
  }
  stats(): Promise<DataplaneStats> {
    return this.call('stats');
  }
  /** The counters once nothing is under way: two looks in a row find the same packets and drops. */
  async quiet(): Promise<DataplaneStats> {
    let last = await this.stats();
    return await until(
      async () => {
        const before = last;
        last = await this.stats();
        return isDeepStrictEqual(await this.changes(before), {}) && last;
      },
      { what: 'the counters to stand still', intervalMs: 30 },
    );
  }
  /**
   * Counters that changed since `before`, kernel-side overflows included. Left out: those of the loop itself, and
   * dropMulticast, which counts what IPv6 says on every new link.
   */
  async changes(before: DataplaneStats): Promise<Record<string, number>> {
    const now = await this.stats();
    const loop = /^(turns|waits|spin|send|receive|tun|dropMulticast)|Bytes$|Superpackets$/;
    return Object.fromEntries(
      Object.entries(now.totals)
        .map(([name, value]) => [name, value - before.totals[name as keyof typeof before.totals]] as const)
        .filter(([name, value]) => value !== 0 && !loop.test(name)),
    );
  }
  /**
   * The changes since `before`, once they are what is wanted or a while has passed: counters follow packets by a
   * moment. For `expect(await engine.reached(before, wanted)).toEqual(wanted)`.
   */
  async reached(before: DataplaneStats, wanted: Readonly<Record<string, number>>): Promise<Record<string, number>> {
    const arrived = async (): Promise<boolean> => isDeepStrictEqual(await this.changes(before), { ...wanted });
    await until(arrived, { what: 'the counters' }).catch(() => undefined);
    return await this.changes(before);
  }
  close(): Promise<number> {
    return this.call('close');
  }

  tcpListen(address: string, port = 0): Promise<number> {
    return this.call('tcpListen', { address, port });
  }
  tcpSend(address: string, port: number, bytes: number, seed = 1): Promise<{ sent: Hashed; arrived: Hashed }> {
    return this.call('tcpSend', { address, port, bytes, seed });
  }
  udpListen(address: string, port = 0, echo = false): Promise<number> {
    return this.call('udpListen', { address, port, echo });
  }
  udpReceived(port: number): Promise<readonly Datagram[]> {
    return this.call('udpReceived', { port });
  }
  udpSend(given: {
    address: string;
    port: number;
    datagrams: readonly string[];
    local?: string;
    from?: number;
  }): Promise<void> {
    return this.call('udpSend', given);
  }
  udpExchange(given: {
    address: string;
    port: number;
    count: number;
    size: number;
    patienceMs?: number;
    tries?: number;
    localPort?: number;
  }): Promise<{ answered: number; lost: number; wrong: number }> {
    return this.call('udpExchange', given);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.process[Symbol.asyncDispose]();
  }
}
