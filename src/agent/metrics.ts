/**
 * The agent's metrics in Prometheus' text format.
 *
 * Everything is read when somebody asks (`collect()` over the shared counters): a packet costs nothing more, and an
 * agent that nobody scrapes does not even load the library. Names are `podwire_…`, with the unit at the end and
 * `_total` for what only grows; the process and Node.js add their customary `process_…` and `nodejs_…`.
 *
 * Cardinality is bounded: {@link DEFAULT_MAX_PEERS} hosts have series of their own, those that were there first; what
 * the others carry is summed up as `peer="other"`. All other labels come from lists in the source.
 */
import type { OverlayStatus, StoreMetrics } from '../index.js';
import type { OperationCounts } from './store-meter.js';

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

export const DEFAULT_MAX_PEERS = 250;

/** What a request for `/metrics` gets; fits the agent's HTTP server and its control socket. */
export interface MetricsAnswer {
  readonly status: 200;
  readonly contentType: string;
  readonly body: string;
}

export interface Metrics {
  /** Concurrent calls share one reading. */
  readonly handler: () => Promise<MetricsAnswer>;
}

/** Counters run from the first request on where a library keeps them (garbage collection, event loop), else from the start. */
export function createMetrics(source: MetricsSource): Metrics {
  let loading: Promise<{ render(): Promise<MetricsAnswer> }> | undefined;
  let reading: Promise<MetricsAnswer> | undefined;
  const read = async (): Promise<MetricsAnswer> => {
    loading ??= import('./metrics/exposition.js').then(({ Exposition }) => new Exposition(source));
    return (await loading).render();
  };
  return {
    handler: () => {
      reading ??= read().finally(() => (reading = undefined));
      return reading;
    },
  };
}
