/**
 * Events from the kernel's nf_tables, through `nft monitor`: who flushes or changes rules is heard at once. The legacy
 * tables have no events; for them the periodic check has to do.
 *
 * A shell stands between: it ends nft when our end of its standard input closes, so that nothing is left even when we
 * are killed.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { messageOf } from '../../errors.js';
import { programEnvironment, type Runner } from '../exec.js';
import { nft } from './nft.js';

// The shell lets go of its output, so that the end of nft is the end of the output.
const SCRIPT = 'nft monitor </dev/null & p=$!; exec >&- 2>&-; read -r x; kill $p; wait $p';

const RESTART_MS = 2_000;
const PING_MS = { first: 100, last: 5_000 } as const;
/** A line of a rule set is far below; an event with a huge set of elements is cut. */
const LONGEST_LINE = 1 << 20;

export interface NftWatchOptions {
  readonly runner: Runner;
  /** Gets each line of `nft monitor`; must not throw. */
  readonly onEvent: (line: string) => void;
  /** Whether events arrive, each time that changes. */
  readonly onState: (state: { readonly live: boolean; readonly reason?: string }) => void;
}

export class NftWatch {
  readonly #options: NftWatchOptions;
  /** Our own name in events, to hear ourselves. */
  readonly #mark = `podwire-watch-${randomBytes(4).toString('hex')}`;
  #child: ChildProcess | undefined;
  #timer: NodeJS.Timeout | undefined;
  /** Undefined until something is known. */
  #live: boolean | undefined;
  #closed = false;

  constructor(options: NftWatchOptions) {
    this.#options = options;
    this.#start();
  }

  /** Ends nft; no event comes after that. */
  async close(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#timer);
    const child = this.#child;
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
    const ended = new Promise((resolve) => child.once('close', resolve));
    child.stdin?.end();
    await ended;
  }

  #start(): void {
    const child = spawn('sh', ['-c', SCRIPT], {
      stdio: ['pipe', 'pipe', 'pipe'],
      env: programEnvironment(),
    });
    this.#child = child;
    let errors = '';
    let rest = '';
    child.stdin.on('error', () => undefined);
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      errors = `${errors}${text}`.slice(-300);
    });
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      const lines = `${rest}${text}`.slice(-LONGEST_LINE).split('\n');
      rest = lines.pop() ?? '';
      for (const line of lines) this.#onLine(line);
    });
    // nft has ended: let the shell go too.
    child.stdout.on('end', () => child.stdin.end());
    let isOver = false;
    const over = (reason: string): void => {
      if (isOver) return;
      isOver = true;
      this.#setLive(false, reason);
      if (this.#closed) return;
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => this.#start(), RESTART_MS);
      this.#timer.unref();
    };
    child.on('error', (error) => over(messageOf(error)));
    child.on('close', () => over(errors.trim().replaceAll(/\s*\n\s*/g, '; ') || 'nft monitor has ended'));
    this.#pingLater(PING_MS.first);
  }

  #onLine(line: string): void {
    if (this.#closed) return;
    if (line.includes(this.#mark)) this.#setLive(true);
    else this.#options.onEvent(line);
  }

  #setLive(live: boolean, reason?: string): void {
    if (this.#live === live || this.#closed) return;
    this.#live = live;
    this.#options.onState({ live, ...(reason === undefined ? {} : { reason }) });
  }

  /** nft does not say when it has subscribed: a table that comes and goes in one transaction shows it. */
  #pingLater(delayMs: number): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      if (this.#live === true || this.#closed) return;
      const table = `table ip ${this.#mark}\n`;
      void nft(this.#options.runner, `add ${table}delete ${table}`).catch(() => undefined);
      this.#pingLater(Math.min(2 * delayMs, PING_MS.last));
    }, delayMs);
    this.#timer.unref();
  }
}
