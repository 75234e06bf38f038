/** The lab's side of an endpoint: starts it inside a namespace and turns its IPC channel into calls. */
import { spawn, type ChildProcess } from 'node:child_process';
import { PodwireError } from '../../errors.js';
import { LAB_ENDPOINT } from '../programs.js';
import type { Arguments, CallName, Reply, Request, Result } from './protocol.js';

const START_TIMEOUT_MS = 20_000;

interface Waiting {
  readonly resolve: (value: unknown) => void;
  readonly reject: (error: Error) => void;
}

/** A running endpoint. Its end, however it comes, rejects every call that is still open. */
export class Endpoint implements AsyncDisposable {
  readonly netns: string;
  readonly #child: ChildProcess;
  readonly #waiting: Map<number, Waiting> = new Map();
  readonly #ended: Promise<void>;
  #next = 0;
  #stderr = '';
  #how = 'no exit code';

  private constructor(netns: string) {
    this.netns = netns;
    // Its own process group, so that a terminal's Ctrl-C leaves the clean-up to the lab.
    this.#child = spawn('ip', ['netns', 'exec', netns, process.execPath, LAB_ENDPOINT], {
      stdio: ['ignore', 'ignore', 'pipe', 'ipc'],
      detached: true,
    });
    this.#child.stderr
      ?.setEncoding('utf8')
      .on('data', (text: string) => (this.#stderr = (this.#stderr + text).slice(-2000)));
    this.#ended = new Promise((resolve) => {
      this.#child.once('error', () => resolve());
      // Not 'close': Node never sends that to the side that closed an IPC channel first. What it said is complete when
      // its stderr closes.
      this.#child.once('exit', (code, signal) => {
        this.#how = signal ?? `exit code ${String(code)}`;
        if (this.#child.stderr === null || this.#child.stderr.closed) resolve();
        else this.#child.stderr.once('close', () => resolve());
      });
    });
  }

  /**
   * Starts the program and waits until its services listen.
   *
   * @throws {PodwireError} `COMMAND_FAILED` with the last thing it said
   */
  static async start(netns: string): Promise<Endpoint> {
    const endpoint = new Endpoint(netns);
    await new Promise<void>((resolve, reject) => {
      const timer = setTimeout(() => {
        reject(endpoint.#failure(`not ready within ${String(START_TIMEOUT_MS)} ms`));
        endpoint.#child.kill('SIGKILL');
      }, START_TIMEOUT_MS);
      endpoint.#child.on('message', (message: Reply) => {
        if ('ready' in message) {
          clearTimeout(timer);
          resolve();
        } else endpoint.#settle(message);
      });
      void endpoint.#ended.then(() => {
        clearTimeout(timer);
        const failure = endpoint.#failure(`it ended (${endpoint.#how})`);
        reject(failure);
        for (const { reject: fail } of endpoint.#waiting.values()) fail(failure);
        endpoint.#waiting.clear();
      });
    });
    return endpoint;
  }

  #failure(what: string): PodwireError {
    const said = this.#stderr.trim().split('\n').slice(-3).join(' ');
    return new PodwireError(
      'COMMAND_FAILED',
      `traffic program in ${this.netns}: ${what}${said === '' ? '' : `: ${said}`}`,
    );
  }

  #settle(message: Exclude<Reply, { ready: true }>): void {
    const waiting = this.#waiting.get(message.id);
    this.#waiting.delete(message.id);
    if ('error' in message) waiting?.reject(new PodwireError('COMMAND_FAILED', message.error));
    else waiting?.resolve(message.result);
  }

  /** @throws {PodwireError} `COMMAND_FAILED` with the endpoint's own words, or that it ended */
  async call<N extends CallName>(call: N, args: Arguments<N>): Promise<Result<N>> {
    const id = this.#next++;
    const request: Request = { id, call, args };
    const result = await new Promise<unknown>((resolve, reject) => {
      if (!this.#child.connected) {
        reject(this.#failure(`it has ended (${this.#how})`));
        return;
      }
      this.#waiting.set(id, { resolve, reject });
      this.#child.send(request);
    });
    return result as Result<N>;
  }

  /** Sends a small datagram again and again until one is echoed by `host`. @param deadline as performance.now() */
  async reaches(host: string, deadline: number): Promise<boolean> {
    while (performance.now() < deadline) {
      const echo = await this.call('udpEcho', { host, sizes: [64], intervalMs: 0, timeoutMs: 200 });
      if (echo.received === 1) return true;
    }
    return false;
  }

  /** Ends the program; never fails. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#child.connected) this.#child.disconnect();
    const timer = setTimeout(() => this.#child.kill('SIGKILL'), 2000);
    await this.#ended;
    clearTimeout(timer);
  }
}
