/**
 * What the kernel reports about links, addresses, routes, neighbours and forwarding of this network namespace, as it
 * happens: a long-lived `ip monitor` whose lines are gathered into bursts.
 *
 * Events are hints to look, never the truth: a listener reads the state again. So an event that is lost (the child
 * dies, its socket overruns) costs one look at everything, which a burst with `everything` asks for.
 */
import { type ChildProcessByStdio, spawn } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { createInterface } from 'node:readline';
import type { Readable, Writable } from 'node:stream';
import { messageOf } from '../errors.js';
import { programEnvironment } from './exec.js';

/** What changed within a few milliseconds. Names are as they were at the time of the event. */
export interface HostEvents {
  /** Devices that appeared, went, or changed state, MTU or MAC. */
  readonly links: ReadonlySet<string>;
  /** Devices that gained or lost an address. */
  readonly addresses: ReadonlySet<string>;
  /** Destinations of the main table, as iproute2 prints them: `default`, `10.42.0.0/16`, `10.0.0.1`. */
  readonly destinations: ReadonlySet<string>;
  /** Devices of those routes. */
  readonly routeDevices: ReadonlySet<string>;
  /** Devices whose neighbours or FDB entries changed. */
  readonly neighbours: ReadonlySet<string>;
  /** Forwarding was switched for the whole namespace. */
  readonly forwarding: boolean;
  /** Events may have been missed: everything may have changed. */
  readonly everything: boolean;
}

export interface MonitorStats {
  readonly running: boolean;
  /** How often the child had to be started again. */
  readonly restarts: number;
  /** How often the kernel dropped events because they came too fast. */
  readonly overruns: number;
}

/** What {@link HostMonitor} is to those who listen; tests put another in its place. */
export interface Monitor {
  /** From now on events are heard; what was before is a burst with `everything`. Once, and not after `close`. */
  listen(): void;
  /** Calls back with every burst until the returned function is called. */
  subscribe(listener: (events: HostEvents) => void): () => void;
  stats(): MonitorStats;
  close(): Promise<void>;
}

export interface MonitorOptions {
  /** Hears once when events stop coming, and once when they come again; one line. */
  readonly onNotice?: (level: 'info' | 'warn', message: string) => void;
  /** Words before the program, such as `ip netns exec NAME`; default none: the process's own namespace. */
  readonly enter?: readonly string[];
}

/** Events that come this close together are one burst. */
const BURST_MS = 20;
/** A burst that names more things than this asks for a look at everything. */
const BURST_LIMIT = 1_000;
const FIRST_RESTART_MS = 100;
const LAST_RESTART_MS = 30_000;
/** A child that ran this long has proved itself: its next end is its first. */
const PROVED_MS = 30_000;
const READY_LIMIT_MS = 2_000;
const READY_STEP_MS = 10;

/**
 * The shell ends `ip` when its standard input ends, which the kernel sees to when this process dies in whatever way.
 * It keeps no copy of the output, so that the end of `ip` is seen here too.
 */
const SCRIPT = `ip -o monitor label link address route neigh netconf & child=$!
echo "pid $child"
exec >/dev/null 2>&1
read -r line
kill $child
wait $child`;

type Child = ChildProcessByStdio<Writable, Readable, Readable>;

interface Burst {
  links: Set<string>;
  addresses: Set<string>;
  destinations: Set<string>;
  routeDevices: Set<string>;
  neighbours: Set<string>;
  forwarding: boolean;
  everything: boolean;
}

export class HostMonitor implements Monitor, AsyncDisposable {
  readonly #options: MonitorOptions;
  readonly #listeners = new Set<(events: HostEvents) => void>();
  #child: Child | undefined;
  #ended: Promise<void> = Promise.resolve();
  #running = false;
  #restarts = 0;
  #overruns = 0;
  #failures = 0;
  #told = false;
  #closed = false;
  #burst: Burst | undefined;
  #restartTimer: NodeJS.Timeout | undefined;

  constructor(options: MonitorOptions = {}) {
    this.#options = options;
  }

  /** Never fails: what keeps it from listening is told through `onNotice`, and tried again. */
  listen(): void {
    if (!this.#closed) this.#launch();
  }

  subscribe(listener: (events: HostEvents) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  stats(): MonitorStats {
    return { running: this.#running, restarts: this.#restarts, overruns: this.#overruns };
  }

  async close(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#restartTimer);
    this.#listeners.clear();
    const child = this.#child;
    if (child === undefined) return;
    child.stdin.end();
    const timer = setTimeout(() => child.kill('SIGKILL'), 2_000);
    await this.#ended;
    clearTimeout(timer);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #launch(): void {
    const startedAt = performance.now();
    const words = [...(this.#options.enter ?? []), 'sh', '-c', SCRIPT];
    // A session of its own, so that a Ctrl-C meant for us does not end it first.
    const child: Child = spawn(words[0]!, words.slice(1), {
      stdio: ['pipe', 'pipe', 'pipe'],
      env: programEnvironment(),
      detached: true,
    });
    this.#child = child;
    let reason = '';
    child.stdin.on('error', () => undefined);
    createInterface({ input: child.stdout }).on('line', (line) => {
      if (line.startsWith('pid ')) void this.#announce(child, line.slice(4));
      else this.#onLine(line);
    });
    createInterface({ input: child.stderr }).on('line', (line) => {
      reason = line.trim();
      if (!/no buffer space/i.test(line)) return;
      this.#overruns++;
      this.#note((burst) => (burst.everything = true));
    });
    // The output ends with `ip`; the shell may still wait for its input.
    child.stdout.on('end', () => child.stdin.end());
    // Without the shell nobody would end `ip`: a closed pipe does, with the next event.
    child.on('exit', () => {
      child.stdout.destroy();
      child.stderr.destroy();
    });
    this.#ended = new Promise((resolve) => {
      child.on('error', (error) => (reason = messageOf(error)));
      child.on('error', () => resolve());
      child.on('close', () => resolve());
    });
    void this.#ended.then(() => this.#onEnd(reason, performance.now() - startedAt));
  }

  /** Waits until the child's socket has joined its groups; what happened before that calls for a look at everything. */
  async #announce(child: Child, pid: string): Promise<void> {
    const deadline = performance.now() + READY_LIMIT_MS;
    while (this.#child === child && performance.now() < deadline) {
      const sockets = await readFile(`/proc/${pid}/net/netlink`, 'utf8').catch(() => '');
      // sk Eth Pid Groups …
      if (sockets.split('\n').some((line) => joined(line.trim().split(/\s+/), pid))) break;
      await new Promise((resolve) => setTimeout(resolve, READY_STEP_MS));
    }
    if (this.#child !== child || this.#closed) return;
    this.#running = true;
    if (this.#told) this.#options.onNotice?.('info', 'kernel events are heard again');
    this.#told = false;
    this.#note((burst) => (burst.everything = true));
  }

  #onEnd(reason: string, ranMs: number): void {
    this.#child = undefined;
    this.#running = false;
    if (this.#closed) return;
    this.#failures = ranMs >= PROVED_MS ? 1 : this.#failures + 1;
    const delayMs = Math.min(LAST_RESTART_MS, FIRST_RESTART_MS * 2 ** (this.#failures - 1));
    if (!this.#told) {
      const why = reason === '' ? 'it was ended' : reason;
      this.#options.onNotice?.(
        'warn',
        `ip monitor stopped (${why}): changes of the host are noticed late until it runs again`,
      );
    }
    this.#told = true;
    this.#restarts++;
    this.#restartTimer = setTimeout(() => this.#launch(), delayMs);
  }

  #onLine(line: string): void {
    const [, label, rest = ''] = /^\[(LINK|ADDR|ROUTE|NEIGH|NETCONF)\](?:Deleted )?(.*)$/.exec(line) ?? [];
    switch (label) {
      case 'LINK':
        this.#noteName('links', /^\d+: ([^:\s]+?)(?:@[^:@\s]*)?: /.exec(rest)?.[1]);
        return;
      case 'ADDR':
        this.#noteName('addresses', /^\d+: (\S+)/.exec(rest)?.[1]);
        return;
      case 'ROUTE':
        this.#onRoute(rest);
        return;
      case 'NEIGH':
        this.#noteName('neighbours', /(?:^| )dev (\S+)/.exec(rest)?.[1]);
        return;
      case 'NETCONF':
        if (/^inet6? all .*forwarding /.test(`${rest} `)) this.#note((burst) => (burst.forwarding = true));
    }
  }

  #onRoute(text: string): void {
    // The main table is the one that is not named.
    if (/ table /.test(text)) return;
    const words = text.split(/[\s\\]+/).filter((word) => word !== '');
    const destination = words.find((word) => word === 'default' || /^[0-9a-f.:]+(\/\d+)?$/i.test(word));
    this.#noteName('destinations', destination);
    words.forEach((word, index) => {
      if (word === 'dev') this.#noteName('routeDevices', words[index + 1]);
    });
  }

  #noteName(
    kind: 'links' | 'addresses' | 'destinations' | 'routeDevices' | 'neighbours',
    name: string | undefined,
  ): void {
    if (name === undefined) return;
    this.#note((burst) => {
      if (burst[kind].size < BURST_LIMIT) burst[kind].add(name);
      else burst.everything = true;
    });
  }

  #note(change: (burst: Burst) => void): void {
    if (this.#closed) return;
    if (this.#burst === undefined) {
      this.#burst = {
        links: new Set(),
        addresses: new Set(),
        destinations: new Set(),
        routeDevices: new Set(),
        neighbours: new Set(),
        forwarding: false,
        everything: false,
      };
      setTimeout(() => this.#flush(), BURST_MS);
    }
    change(this.#burst);
  }

  #flush(): void {
    const burst = this.#burst;
    this.#burst = undefined;
    if (burst === undefined) return;
    for (const listener of this.#listeners) listener(burst);
  }
}

/** A line of /proc/net/netlink: is it this process's socket, and a member of a multicast group? */
function joined(columns: readonly string[], pid: string): boolean {
  return columns[2] === pid && /[1-9a-f]/i.test(columns[3] ?? '');
}
