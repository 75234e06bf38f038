/**
 * A backend around another that can be opened anew: when its device is removed under it, and when the underlay's
 * address or MTU changes. The lease and the routes stay known here; a new backend gets all of them before it counts.
 *
 * Between the end of the old one and the start of the new one no packet is carried, some hundred milliseconds; nothing
 * else of the overlay notices. The old one goes first, because both would want the same device and port.
 */
import type { Dataplane, DataplaneStats } from '../../dataplane/dataplane.js';
import type { Logger } from '../../dataplane/logger.js';
import { messageOf, PodwireError } from '../../errors.js';
import type { SelectedInterface } from '../../host/select-interface.js';
import type { Address, Prefix } from '../../net/prefix.js';
import { Backoff, type Clock, pause } from '../clock.js';
import type { Lease, LeaseAttributes } from '../lease.js';
import type { Backend } from './backend.js';

export interface ReopeningOptions {
  /** Opens the backend; `before` is the closed one whose device name and ways the new one should have. */
  readonly open: (underlay: SelectedInterface, before: Backend | undefined) => Promise<Backend>;
  readonly underlay: SelectedInterface;
  readonly logger: Logger;
  readonly clock: Clock;
  readonly onRouteFault?: (prefix: Prefix, reason: string | undefined) => void;
}

/** Delays between tries to open again. */
const RETRY = { minMs: 100, maxMs: 10_000 };
/** A backend that lived this long has proved itself: the next one is opened without delay. */
const PROVED_MS = 10_000;
/** Whoever removes the device again and again meets a new one at doubling distances. */
const SHORT_LIFE = { minMs: 100, maxMs: 30_000 };

export class ReopeningBackend implements Backend {
  readonly closed: Promise<void>;
  readonly #options: ReopeningOptions;
  readonly #routes = new Map<string, { readonly prefix: Prefix; readonly lease: Lease }>();
  readonly #stopping = new AbortController();
  #underlay: SelectedInterface;
  #inner: Backend;
  /** The one that carries packets or will; between two backends undefined. */
  #current: Backend | undefined;
  #lease: Lease | undefined;
  #isComplete = false;
  #reopened = 0;
  #adoptedAt = 0;
  #shortLives: Backoff | undefined;
  #work: Promise<unknown> = Promise.resolve();
  #closing: Promise<void> | undefined;
  #settle!: { resolve: () => void; reject: (error: unknown) => void };

  private constructor(options: ReopeningOptions, inner: Backend) {
    this.#options = options;
    this.#underlay = options.underlay;
    this.#inner = inner;
    this.closed = new Promise((resolve, reject) => (this.#settle = { resolve, reject }));
    this.closed.catch(() => undefined);
    this.#adopt(inner);
  }

  /** @throws {PodwireError} what the first `open` throws. */
  static async open(options: ReopeningOptions): Promise<ReopeningBackend> {
    return new ReopeningBackend(options, await options.open(options.underlay, undefined));
  }

  /** How often the backend was opened again. */
  get reopened(): number {
    return this.#reopened;
  }

  /** False between two backends. */
  get isOpen(): boolean {
    return this.#current !== undefined;
  }

  /** What the backend uses, or will when it is open again. */
  get underlay(): SelectedInterface {
    return this.#underlay;
  }

  get type(): string {
    return this.#inner.type;
  }

  get attributes(): LeaseAttributes {
    return this.#inner.attributes;
  }

  get ownAddresses(): readonly Address[] {
    return this.#inner.ownAddresses;
  }

  get device(): string {
    return this.#inner.device;
  }

  get device6(): string | undefined {
    return this.#inner.device6;
  }

  get mtu(): number {
    return this.#inner.mtu;
  }

  get isWithoutPort(): boolean {
    return this.#inner.isWithoutPort ?? false;
  }

  get isPassive(): boolean {
    return this.#inner.isPassive ?? false;
  }

  get dataplane(): Dataplane | undefined {
    return this.#inner.dataplane;
  }

  get facts(): Readonly<Record<string, unknown>> {
    return this.#inner.facts;
  }

  get problems(): readonly string[] {
    return this.#inner.problems ?? [];
  }

  get stats(): DataplaneStats | undefined {
    return this.#inner.stats;
  }

  /** Uses another underlay, or the same with another address or MTU. Resolves when packets are carried again. */
  moveTo(underlay: SelectedInterface): Promise<void> {
    return this.#exclusive(async () => {
      this.#underlay = underlay;
      await this.#reopen();
    });
  }

  begin(lease: Lease, publish: () => Promise<void>): Promise<void> {
    return this.#exclusive(async () => {
      await this.#inner.begin(lease, publish);
      this.#lease = lease;
    });
  }

  changeSubnet(from: Lease, to: Lease, publish: () => Promise<void>): Promise<void> {
    return this.#exclusive(async () => {
      await this.#inner.changeSubnet(from, to, publish);
      this.#lease = to;
    });
  }

  refusal(...about: Parameters<Backend['refusal']>): string | undefined {
    return this.#inner.refusal(...about);
  }

  setRoute(prefix: Prefix, lease: Lease): void {
    this.#current?.setRoute(prefix, lease);
    this.#routes.set(prefix.toString(), { prefix, lease });
  }

  removeRoute(prefix: Prefix): boolean {
    const isKnown = this.#routes.delete(prefix.toString());
    return this.#current?.removeRoute(prefix) ?? isKnown;
  }

  routesComplete(): void {
    this.#isComplete = true;
    this.#current?.routesComplete();
  }

  async hostChanged(): Promise<void> {
    await this.#exclusive(async () => await this.#current?.hostChanged?.());
  }

  close(): Promise<void> {
    this.#closing ??= (async () => {
      this.#stopping.abort();
      const current = this.#current;
      await Promise.allSettled([current?.close(), this.#work]);
      // One that a try under way has opened meanwhile.
      if (this.#current !== current) await this.#current?.close();
      this.#settle.resolve();
    })();
    return this.#closing;
  }

  async dismantle(): Promise<void> {
    await this.#inner.dismantle?.();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #adopt(backend: Backend): void {
    this.#inner = backend;
    this.#current = backend;
    this.#adoptedAt = this.#options.clock.monotonic();
    backend.closed.catch((error: unknown) => {
      if (this.#current !== backend) return;
      if (!(error instanceof PodwireError) || error.code !== 'DEVICE') {
        this.#current = undefined;
        this.#settle.reject(error);
        return;
      }
      const delayMs = this.#delayMs();
      const when = delayMs === 0 ? '' : ` in ${delayMs} ms, because it never lasts`;
      this.#options.logger.error(
        { device: backend.device, reason: error.message },
        `the data plane is lost, opening it again${when}`,
      );
      void this.#exclusive(() => this.#reopen(backend, delayMs)).catch(() => undefined);
    });
  }

  /** None after the first short life of a backend, then more and more. */
  #delayMs(): number {
    const isShort = this.#options.clock.monotonic() - this.#adoptedAt < PROVED_MS;
    if (!isShort || this.#shortLives === undefined) {
      this.#shortLives = isShort ? new Backoff(SHORT_LIFE) : undefined;
      return 0;
    }
    return Math.round(this.#shortLives.nextMs());
  }

  /** Until it works or the backend is closed. @param only the backend to replace; nothing is done if it was replaced. */
  async #reopen(only?: Backend, delayMs = 0): Promise<void> {
    if (only !== undefined && this.#current !== only) return;
    const { open, logger, clock } = this.#options;
    const { signal } = this.#stopping;
    const old = this.#inner;
    this.#current = undefined;
    const beganAt = clock.monotonic();
    await old.close().catch((error: unknown) => logger.debug({ err: messageOf(error) }, 'the old data plane failed'));
    if (delayMs > 0) await pause(clock, delayMs, signal);
    const backoff = new Backoff(RETRY);
    for (let told = ''; !signal.aborted;) {
      let backend: Backend | undefined;
      try {
        backend = await open(this.#underlay, old);
        // Its consumers hear of a change of the MTU from whoever has asked for it.
        if (this.#lease !== undefined && !signal.aborted) await backend.begin(this.#lease, () => Promise.resolve());
        this.#adopt(backend);
        this.#replay(backend);
        break;
      } catch (error) {
        await backend?.close().catch(() => undefined);
        if (messageOf(error) !== told) {
          logger.error({}, `the data plane cannot be opened again, trying on: ${messageOf(error)}`);
        }
        told = messageOf(error);
        await pause(clock, backoff.nextMs(), signal);
      }
    }
    if (signal.aborted) return;
    this.#reopened++;
    const gapMs = Math.round(clock.monotonic() - beganAt);
    logger.warn(
      { device: this.#inner.device, mtu: this.#inner.mtu, routes: this.#routes.size, gapMs, reopened: this.#reopened },
      'the data plane is open again',
    );
  }

  #replay(backend: Backend): void {
    for (const { prefix, lease } of this.#routes.values()) {
      try {
        backend.setRoute(prefix, lease);
      } catch (error) {
        this.#options.onRouteFault?.(prefix, messageOf(error));
      }
    }
    if (this.#isComplete) backend.routesComplete();
  }

  #exclusive<T>(step: () => Promise<T>): Promise<T> {
    const done = this.#work.then(step);
    this.#work = done.catch(() => undefined);
    return done;
  }
}
