/** The metrics as prom-client registers them; loaded with the first request. */
import { collectDefaultMetrics, Counter, Gauge, Registry } from 'prom-client';
import type { OverlayStatus, StoreMetrics } from '../../index.js';
import type { OperationCounts } from '../store-meter.js';
import { DEFAULT_MAX_PEERS, PeerAccounts } from './accounts.js';
import { CONTROL_FAMILIES } from './control.js';
import { ENGINE_FAMILIES } from './engine.js';
import type { Family, Reading } from './family.js';
import { PEER_FAMILIES } from './peers.js';

/** Wake-ups of the event-loop lag meter: often enough for lags that hurt, too seldom to cost an idle agent anything. */
const LAG_PRECISION_MS = 50;

export interface MetricsSource {
  readonly version: string;
  /** Undefined while there is no overlay yet. */
  readonly overlay: () => OverlayStatus | undefined;
  /** What the store counts about itself; see LeaseStore.metrics. */
  readonly store?: () => StoreMetrics | undefined;
  /** What the agent asked of the store, and how long that took. */
  readonly operations?: Readonly<Record<string, OperationCounts>>;
  /** Whether the agent would answer "ready". */
  readonly ready?: () => boolean | Promise<boolean>;
  /** Hosts with series of their own. */
  readonly maxPeers?: number;
}

/** What a request for `/metrics` gets; fits the agent's HTTP server and its control socket. */
export interface MetricsAnswer {
  readonly status: 200;
  readonly contentType: string;
  readonly body: string;
}

export class Exposition {
  readonly #source: MetricsSource;
  readonly #registry = new Registry();
  readonly #peers: PeerAccounts;
  #reading: Reading | undefined;

  constructor(source: MetricsSource) {
    this.#source = source;
    this.#peers = new PeerAccounts(source.maxPeers ?? DEFAULT_MAX_PEERS);
    for (const family of [...CONTROL_FAMILIES, ...ENGINE_FAMILIES, ...PEER_FAMILIES]) this.#register(family);
    collectDefaultMetrics({ register: this.#registry, eventLoopMonitoringPrecision: LAG_PRECISION_MS });
  }

  async render(): Promise<MetricsAnswer> {
    const { version, ready, operations = {} } = this.#source;
    const isReady = ready === undefined ? undefined : await ready();
    const overlay = this.#source.overlay();
    const store = this.#source.store?.() ?? {};
    this.#reading = { version, ready: isReady, overlay, store, operations, peers: this.#peers.update(overlay) };
    try {
      return { status: 200, contentType: this.#registry.contentType, body: await this.#registry.metrics() };
    } finally {
      this.#reading = undefined;
    }
  }

  #register({ type, name, help, labels = [], read }: Family): void {
    const options = { name, help, labelNames: labels, registers: [] };
    const reading = (): Reading | undefined => this.#reading;
    // Counters stand in shared memory already: what the library holds is replaced at each reading. A metric without
    // labels is a sample from the start, which a reading may not have.
    const metric =
      type === 'counter'
        ? new Counter({
            ...options,
            collect() {
              this.reset();
              if (labels.length === 0) this.remove();
              const now = reading();
              if (now !== undefined) read(now, (value, values = {}) => this.inc(values, value));
            },
          })
        : new Gauge({
            ...options,
            collect() {
              this.reset();
              if (labels.length === 0) this.remove();
              const now = reading();
              if (now !== undefined) read(now, (value, values = {}) => this.set(values, value));
            },
          });
    this.#registry.registerMetric(metric);
  }
}
