/**
 * Keeps an {@link EtcdView} up to date: a list, then a watch from the revision behind it, resumed at the last event
 * through every kind of break. Listed again only when changes were missed: compacted away, or another cluster.
 *
 * A watch that says nothing is asked for its progress; no answer means that it is dead, and another endpoint is tried.
 */
import type { StoreNotice } from '../../lease.js';
import { Backoff, pause, systemClock, type Clock } from '../../clock.js';
import { EtcdFault, faultOf, toPodwireError } from './faults.js';
import type { EtcdKeys } from './keys.js';
import type { WatchResponse } from './protocol.js';
import type { EtcdTransport, WatchStream } from './transport.js';
import type { EtcdView } from './view.js';

export interface EtcdWatchOptions {
  readonly transport: EtcdTransport;
  readonly view: EtcdView;
  readonly keys: EtcdKeys;
  readonly clock: Clock;
  readonly random: () => number;
  readonly requestTimeoutMs: number;
  readonly progressMs: number;
  readonly description: string;
  readonly username: string | undefined;
  readonly onNotice: (notice: StoreNotice) => void;
}

/** Changes were missed: everything has to be read again. */
class Missed extends Error {}

/** A watch that lived this long was a good one: the next failure is a first one again. */
const GOOD_LIFE_MS = 5_000;

/** Look-ups that run together; they have time. */
const DATING_CONCURRENCY = 4;

export class EtcdWatch {
  /** Watches begun again. */
  reconnects = 0;
  /** Lists read again because changes were missed. */
  resyncs = 0;
  /** Changes of keys that etcd reported. */
  events = 0;
  readonly #options: EtcdWatchOptions;
  /** The first revision not yet seen; 0 before the first list. */
  #next = 0;
  #failures = 0;
  #isDown = false;
  /** A member that is behind has been found to lag, rather than to be another cluster. */
  #isLagKnown = false;
  /** A refused watch may only lack a fresh token: one login is tried. */
  #hasLoggedInAgain = false;

  constructor(options: EtcdWatchOptions) {
    this.#options = options;
  }

  /** Whether the view has been complete once. */
  get hasList(): boolean {
    return this.#next > 0;
  }

  /** Follows until `signal` aborts; never rejects. One at a time. */
  async run(signal: AbortSignal): Promise<void> {
    const { view, random } = this.#options;
    const backoff = new Backoff({ minMs: 100, maxMs: 5_000 }, random);
    // What happened while nobody followed is only in a list.
    this.#next = 0;
    for (let isFirst = true; !signal.aborted; isFirst = false) {
      const startedMs = performance.now();
      try {
        if (this.#next === 0) await this.#list(signal);
        view.table.startFeeds();
        if (!isFirst) this.reconnects++;
        void this.#date(signal);
        await this.#follow(signal);
      } catch (error) {
        if (signal.aborted) return;
        if (performance.now() - startedMs > GOOD_LIFE_MS) backoff.reset();
        this.#ended(error);
        await pause(systemClock, backoff.nextMs(), signal);
      }
    }
  }

  async #list(signal: AbortSignal): Promise<void> {
    const { transport, view, keys } = this.#options;
    const since = view.revision;
    const { header, kvs } = await transport.read('range', { key: keys.first, range_end: keys.end }, signal);
    this.#next = view.replace(header, kvs, since) + 1;
  }

  /** Asks when the leases end that do not say so themselves. Best done: until then they are believed to be new. */
  async #date(signal: AbortSignal): Promise<void> {
    const { transport, view, clock } = this.#options;
    const open = view.undated();
    const work = async (): Promise<void> => {
      for (let next = open.pop(); next && !signal.aborted; next = open.pop()) {
        const { TTL } = await transport.read('leaseTimeToLive', { ID: next.leaseId }, signal);
        if (Number(TTL) > 0) view.date(next.name, next.leaseId, clock.now() + Number(TTL) * 1000);
      }
    };
    await Promise.all(Array.from({ length: DATING_CONCURRENCY }, work)).catch(() => undefined);
  }

  /** One watch, until `signal` aborts. @throws EtcdFault, Missed when it ends before. */
  #follow(signal: AbortSignal): Promise<void> {
    const { transport, view, keys, clock, requestTimeoutMs, progressMs } = this.#options;
    const start = this.#next;
    let isOver = false;
    let stream: WatchStream | undefined;
    let cancelQuiet = (): void => undefined;
    let cancelHold = (): void => undefined;
    let onAbort = (): void => undefined;
    const ended = new Promise<void>((resolve, reject) => {
      /** After a quiet spell the watch is asked for its progress; silence after that means that it is dead. */
      const listen = (isAsked: boolean): void => {
        cancelQuiet();
        const onQuiet = (): void => {
          if (isAsked) {
            const endpoint = stream?.endpoint ?? 'etcd';
            transport.avoid(endpoint);
            reject(new EtcdFault('unreachable', endpoint, `the watch did not answer within ${requestTimeoutMs} ms`));
            return;
          }
          stream?.send({ progress_request: {} });
          listen(true);
        };
        cancelQuiet = systemClock.timer(onQuiet, isAsked ? requestTimeoutMs : progressMs);
      };
      const onMessage = (message: WatchResponse): void => {
        try {
          listen(false);
          this.#take(message, start, stream?.endpoint ?? 'etcd');
        } catch (error) {
          reject(error);
        }
      };
      onAbort = resolve;
      signal.addEventListener('abort', onAbort, { once: true });
      if (signal.aborted) resolve();
      listen(true);
      if (view.table.isHolding) {
        const relist = (): void => void this.#list(signal).catch(reject);
        cancelHold = clock.timer(relist, view.table.holdUntilMs - clock.monotonic() + 1);
      }
      const open = async (): Promise<void> => {
        const opened = await transport.openWatch(onMessage, reject);
        stream = opened;
        if (isOver) opened.cancel();
        else opened.send({ create_request: { key: keys.first, range_end: keys.end, start_revision: start } });
      };
      open().catch(reject);
    });
    return ended.finally(() => {
      isOver = true;
      cancelQuiet();
      cancelHold();
      signal.removeEventListener('abort', onAbort);
      stream?.cancel();
    });
  }

  #take(message: WatchResponse, start: number, endpoint: string): void {
    const { view, keys } = this.#options;
    if (message.compact_revision !== '0') {
      throw new EtcdFault('compacted', endpoint, `revision ${start} has been compacted`);
    }
    if (message.canceled) {
      throw faultOf({ code: 14, details: message.cancel_reason || 'etcd ended the watch' }, endpoint, 0);
    }
    if (!view.isKnownCluster(message.header)) throw new Missed('the endpoint belongs to another cluster');
    if (message.created) {
      const isBehind = Number(message.header?.revision ?? 0) + 1 < start;
      if (isBehind && !this.#isLagKnown) {
        this.#isLagKnown = true;
        throw new Missed('the endpoint knows less than we do');
      }
      this.#isLagKnown = false;
      this.#hasLoggedInAgain = false;
      this.#succeeded();
    }
    for (const { type, kv } of message.events) {
      this.events++;
      if (type === 'PUT') view.put(kv);
      else view.delete(keys.nameOf(kv.key), Number(kv.mod_revision));
      this.#next = Math.max(this.#next, Number(kv.mod_revision) + 1);
    }
  }

  #ended(error: unknown): void {
    const { transport, description, username, onNotice } = this.#options;
    const isCompacted = error instanceof EtcdFault && error.kind === 'compacted';
    if (error instanceof Missed || isCompacted) {
      this.#next = 0;
      this.resyncs++;
      return;
    }
    const mayBeToken = error instanceof EtcdFault && (error.kind === 'denied' || error.kind === 'token');
    if (mayBeToken && username !== undefined && !this.#hasLoggedInAgain) {
      this.#hasLoggedInAgain = true;
      transport.forgetToken();
      return;
    }
    // The end of one watch is mostly the end of one endpoint, and the next one takes over at once.
    if (++this.#failures === 1 && this.hasList) return;
    if (this.#isDown) return;
    this.#isDown = true;
    const fault = toPodwireError(error, `follow the leases in ${description}`, { username });
    onNotice({ kind: 'down', reason: `${fault.message}; known leases stay in force`, error: fault });
  }

  #succeeded(): void {
    this.#failures = 0;
    if (!this.#isDown) return;
    this.#isDown = false;
    this.#options.onNotice({ kind: 'up', reason: `${this.#options.description} can be followed again` });
  }
}
