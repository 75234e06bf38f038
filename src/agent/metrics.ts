/**
 * The agent's metrics in Prometheus' text format.
 *
 * Everything is read when somebody asks (`collect()` over the shared counters): a packet costs nothing more, and an
 * agent that nobody scrapes does not even load the library. Names are `podwire_…`, with the unit at the end and
 * `_total` for what only grows; the process and Node.js add their customary `process_…` and `nodejs_…`.
 *
 * Cardinality is bounded: 250 hosts, or `--metrics-peers`, have series of their own, those that were there first; what
 * the others carry is summed up as `peer="other"`. All other labels come from lists in the source.
 */
import type { MetricsAnswer, MetricsSource } from './metrics/exposition.js';

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
