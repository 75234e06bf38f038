/**
 * Makes drops, fallbacks and offenders visible in the log: once a second the totals are compared, and a counter that
 * rose gets one line, at most one a minute, with what it means and how much came since its last line.
 */
import { COUNTERS, KERNEL_DROPS } from './counters.js';
import type { Logger } from './logger.js';
import type { DataplaneStats } from './stats.js';

const LOOK_EVERY_MS = 1000;
const LINE_EVERY_MS = 60_000;

/** Not worth a line: the kernel itself emits such packets on every device. */
const QUIET = new Set(['dropMulticast', 'dropShort', 'dropVxlanType', 'dropVxlanGroup']);

const MEANINGS: Readonly<Record<string, string>> = { ...COUNTERS, ...KERNEL_DROPS };
const WATCHED: readonly string[] = Object.keys(MEANINGS).filter(
  (name) => (name.startsWith('drop') || name.startsWith('fallback')) && !QUIET.has(name),
);

interface Seen {
  logged: number;
  lineAt: number;
}

export class DropLog {
  readonly #read: () => Pick<DataplaneStats, 'totals' | 'offenders'>;
  readonly #logger: Logger;
  /** Called when the underlay refused datagrams for their size: the host's MTUs may have changed. */
  readonly #onSendTooBig: () => void;
  readonly #now: () => number;
  readonly #seen = new Map<string, Seen>();
  #tooBig = 0;
  #timer: NodeJS.Timeout | undefined;

  /** @param now milliseconds that never go back */
  constructor(
    read: () => Pick<DataplaneStats, 'totals' | 'offenders'>,
    logger: Logger,
    onSendTooBig: () => void,
    now: () => number = () => performance.now(),
  ) {
    this.#read = read;
    this.#logger = logger;
    this.#onSendTooBig = onSendTooBig;
    this.#now = now;
  }

  /** Looks once a second; does not keep the process alive. */
  start(): void {
    this.#timer = setInterval(() => this.look(), LOOK_EVERY_MS);
    this.#timer.unref();
  }

  stop(): void {
    clearInterval(this.#timer);
  }

  look(): void {
    const { totals, offenders } = this.#read();
    const now = this.#now();
    for (const name of WATCHED) {
      const value = (totals as Readonly<Record<string, number>>)[name] ?? 0;
      const seen = this.#seen.get(name) ?? { logged: 0, lineAt: -Infinity };
      if (value <= seen.logged || now - seen.lineAt < LINE_EVERY_MS) continue;
      const sender =
        name === 'dropUnknownSender'
          ? offenders.unknownSender
          : name === 'dropSpoofedSource'
            ? offenders.spoofedSource
            : undefined;
      const fields = { counter: name, since: value - seen.logged, total: value };
      this.#logger.warn(
        sender === undefined ? fields : { ...fields, latestSender: sender.address },
        `${name.startsWith('drop') ? 'packets dropped' : 'slower way taken'}: ${MEANINGS[name] ?? name}`,
      );
      this.#seen.set(name, { logged: value, lineAt: now });
    }
    const tooBig = totals.dropSendTooBig + totals.fallbackUdpSegment;
    if (tooBig > this.#tooBig) this.#onSendTooBig();
    this.#tooBig = tooBig;
  }
}
