/**
 * Follows the interface and addresses that carry the tunnel: chooses again, by the rules of the start, whenever the
 * kernel reports something that could change the answer, and tells when it did.
 *
 * An answer that cannot be had (an address between two DHCP leases, a default route that is away) changes nothing: what
 * was chosen stays in use until there is another.
 */
import { messageOf } from '../errors.js';
import { type HostInterface, listInterfaces } from './interfaces.js';
import type { Runner } from './exec.js';
import type { HostEvents, Monitor } from './monitor.js';
import type { SelectedInterface } from './select-interface.js';

export interface UnderlayWatchOptions {
  readonly runner: Runner;
  readonly monitor: Monitor;
  readonly current: SelectedInterface;
  /** The choice of the start. */
  readonly select: () => Promise<SelectedInterface>;
  /** Devices of our own, whose addresses mean nothing here. */
  readonly isOurs: (device: string) => boolean;
  /** The choice hangs on the route to some address, so every change of a route may matter. */
  readonly followsRoutes: boolean;
  /** Hears of another choice, and what is different: `address 10.0.0.1 -> 10.0.0.9`. */
  readonly onMove: (next: SelectedInterface, changes: string) => void;
  /** Hears of all interfaces after every look. */
  readonly onLook?: (interfaces: readonly HostInterface[]) => void;
  readonly say: (level: 'info' | 'warn' | 'error', fields: Readonly<Record<string, unknown>>, message: string) => void;
  /** Milliseconds without a further event before a look, so that a change of several steps is seen as one; default 300. */
  readonly settleMs?: number;
  /** Milliseconds between looks without an event; default 30,000. */
  readonly periodMs?: number;
}

const SETTLE_MS = 300;
/** Events that never stop put a look off no longer than this. */
const LONGEST_WAIT_MS = 2_000;
const PERIOD_MS = 30_000;
const COMPARED = ['name', 'mtu', 'address', 'address6', 'publicIp', 'publicIpv6'] as const;

type LinkState = 'up' | 'down' | 'without carrier' | 'gone';

export class UnderlayWatch {
  readonly #options: UnderlayWatchOptions;
  readonly #unsubscribe: () => void;
  readonly #period: NodeJS.Timeout;
  #current: SelectedInterface;
  #link: LinkState = 'up';
  #fault: string | undefined;
  #timer: NodeJS.Timeout | undefined;
  #latest = Infinity;
  #running: Promise<void> | undefined;
  #again = false;
  #closed = false;

  constructor(options: UnderlayWatchOptions) {
    this.#options = options;
    this.#current = options.current;
    this.#unsubscribe = options.monitor.subscribe((events) => {
      if (this.#matters(events)) this.#trigger();
    });
    this.#period = setInterval(() => this.#trigger(), options.periodMs ?? PERIOD_MS).unref();
  }

  /** State of the interface, and why there is no other choice at present; one line each. */
  get problems(): string[] {
    const { name } = this.#current;
    const link = this.#link === 'up' ? [] : [`the underlay interface ${name} is ${this.#link}`];
    return [...link, ...(this.#fault === undefined ? [] : [`the underlay cannot be chosen again: ${this.#fault}`])];
  }

  /** Looks without waiting for an event; resolves when {@link UnderlayWatchOptions.onMove} has been told. */
  async look(): Promise<void> {
    while (this.#running !== undefined) await this.#running;
    if (this.#closed) return;
    this.#running = this.#look().finally(() => (this.#running = undefined));
    await this.#running;
  }

  async close(): Promise<void> {
    this.#closed = true;
    this.#unsubscribe();
    clearInterval(this.#period);
    clearTimeout(this.#timer);
    await this.#running;
  }

  #matters(events: HostEvents): boolean {
    const { isOurs, followsRoutes } = this.#options;
    return (
      events.everything ||
      events.links.has(this.#current.name) ||
      [...events.addresses].some((device) => !isOurs(device)) ||
      events.destinations.has('default') ||
      (followsRoutes && events.destinations.size > 0)
    );
  }

  #trigger(): void {
    if (this.#closed) return;
    if (this.#running !== undefined) {
      this.#again = true;
      return;
    }
    const now = performance.now();
    if (this.#timer === undefined) this.#latest = now + LONGEST_WAIT_MS;
    clearTimeout(this.#timer);
    const delayMs = Math.min(this.#options.settleMs ?? SETTLE_MS, Math.max(0, this.#latest - now));
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      this.#running = this.#look().finally(() => {
        this.#running = undefined;
        if (this.#again) {
          this.#again = false;
          this.#trigger();
        }
      });
    }, delayMs);
  }

  async #look(): Promise<void> {
    const { runner, select, onLook, onMove, say } = this.#options;
    let next: SelectedInterface;
    try {
      const interfaces = await listInterfaces(runner);
      this.#noteLink(interfaces);
      onLook?.(interfaces);
      next = await select();
    } catch (error) {
      const fault = messageOf(error);
      if (this.#fault !== fault)
        say('warn', {}, `the underlay cannot be chosen again, the old one stays in use: ${fault}`);
      this.#fault = fault;
      return;
    }
    if (this.#fault !== undefined) say('info', { interface: next.name }, 'the underlay can be chosen again');
    this.#fault = undefined;
    if (this.#closed) return;
    const changes = describeChanges(this.#current, next);
    this.#current = next;
    if (changes !== '') onMove(next, changes);
  }

  #noteLink(interfaces: readonly HostInterface[]): void {
    const { name } = this.#current;
    const found = interfaces.find((entry) => entry.name === name);
    const state: LinkState =
      found === undefined ? 'gone' : !found.up ? 'down' : found.carrier ? 'up' : 'without carrier';
    if (state === this.#link) return;
    this.#link = state;
    if (state === 'up') this.#options.say('info', { interface: name }, `the underlay interface ${name} is up again`);
    else {
      this.#options.say(
        'error',
        { interface: name },
        `the underlay interface ${name} is ${state}: no packet leaves this host through it`,
      );
    }
  }
}

/** `mtu 1500 -> 1400, address 10.0.0.1 -> 10.0.0.9`; empty when nothing differs that matters. */
export function describeChanges(before: SelectedInterface, after: SelectedInterface): string {
  const show = (value: SelectedInterface[(typeof COMPARED)[number]]): string => value?.toString() ?? 'none';
  return COMPARED.filter((field) => show(before[field]) !== show(after[field]))
    .map((field) => `${field} ${show(before[field])} -> ${show(after[field])}`)
    .join(', ');
}
