/** The figures of several data planes as those of one: a dual-stack vxlan host has one for each family. */
import type { DataplaneStats } from './stats.js';

/** @param all at least one. */
export function mergeStats(all: readonly DataplaneStats[]): DataplaneStats {
  const [first, ...rest] = all;
  if (first === undefined) throw new Error('no data plane to take figures from');
  return rest.reduce(
    (sum, next) => ({
      totals: added(sum.totals, next.totals),
      workers: [...sum.workers, ...next.workers],
      peers: [...sum.peers, ...next.peers],
      routes: sum.routes + next.routes,
      pathMtu: added(sum.pathMtu, next.pathMtu),
      offenders: { ...next.offenders, ...sum.offenders },
    }),
    first,
  );
}

/** Numbers are added, anything else is the first one's. */
function added<T extends object>(a: T, b: T): T {
  const sum = { ...a } as Record<string, unknown>;
  for (const [name, value] of Object.entries(b)) {
    const before = sum[name];
    sum[name] = typeof value === 'number' && typeof before === 'number' ? before + value : (before ?? value);
  }
  return sum as T;
}
