/**
 * The search for a path's MTU: which sizes to probe, and what their fate proves. Knows no sockets, clocks or addresses.
 *
 * A size is *bad* only after `retries` probes of it were lost and the small probe sent right after each was answered, so
 * that loss and outages are not taken for a smaller MTU (compare RFC 8899, packetization layer path MTU discovery).
 * Where the small ones are lost as well, nothing is known and nothing may change.
 */

/**
 * - `answered`: a packet of that size went through
 * - `lost`: no answer in time
 * - `too-big`: this host's own link does not take it, which needs no further proof
 * - `failed`: could not be sent (no route, no buffers, closed): says nothing about the path
 */
export type ProbeOutcome = 'answered' | 'lost' | 'too-big' | 'failed';

/** good: carried · bad: too big · unknown: nothing can be said, so nothing changes */
export type Verdict = 'good' | 'bad' | 'unknown';

/** One path as the search sees it; sizes are bytes of outer packet. */
export interface ProbedPath {
  probe(size: number): Promise<ProbeOutcome>;
  /** The small size, which every path carries. */
  readonly floor: number;
  /** Probes of one size that must be lost before it is bad. */
  readonly retries: number;
  /** A size that somebody reported, to be tried first; 0 for none. May change while the search runs. */
  readonly hint: number;
}

/** The boundary of a finished search is tested again; loss that lasts through this many of them is given up on. */
const SEARCHES = 3;

/** Whether the path carries packets of this size. Sizes up to the floor are never bad. */
export async function testSize(path: ProbedPath, size: number): Promise<Verdict> {
  let refused = 0;
  for (let attempt = 1; attempt <= path.retries * 2; attempt++) {
    const outcome = await path.probe(size);
    if (outcome === 'answered') return 'good';
    if (outcome === 'failed') return 'unknown';
    if (outcome === 'too-big') return size > path.floor ? 'bad' : 'unknown';
    if (size > path.floor) {
      const small = await path.probe(path.floor);
      if (small === 'answered' && ++refused === path.retries) return 'bad';
      if (small === 'failed' || small === 'too-big') return 'unknown';
    }
    if (refused === 0 && attempt >= path.retries) return 'unknown';
  }
  return 'unknown';
}

/** The largest size below `bad` that passes; undefined when that cannot be told. May find that `bad` passes after all. */
export async function searchDown(path: ProbedPath, bad: number): Promise<number | undefined> {
  return (await testSize(path, path.floor)) === 'good' ? await search(path, path.floor, bad) : undefined;
}

/**
 * The largest size from `used`, which passes, to `ceiling`; undefined when that cannot be told. One byte more than what
 * is used shows cheaply whether anything has changed; only then is the new limit sought.
 */
export async function searchUp(path: ProbedPath, used: number, ceiling: number): Promise<number | undefined> {
  if (used >= ceiling) return used;
  const more = await testSize(path, used + 1);
  if (more !== 'good' || used + 1 === ceiling) return more === 'good' ? ceiling : more === 'bad' ? used : undefined;
  const top = await testSize(path, ceiling);
  if (top === 'good') return ceiling;
  return top === 'bad' ? await search(path, used + 1, ceiling) : undefined;
}

/**
 * The largest size that passes, between one that does and one that does not. The smallest refused size is tested once
 * more at the end, since loss may have refused it; if it passes after all, the search goes on above it.
 */
async function search(path: ProbedPath, good: number, bad: number): Promise<number | undefined> {
  let low = good;
  for (let searches = 0; searches < SEARCHES; searches++) {
    let high = bad;
    while (high - low > 1) {
      const size = between(low, high, path.hint);
      const verdict = await testSize(path, size);
      if (verdict === 'unknown') return undefined;
      if (verdict === 'good') low = size;
      else high = size;
    }
    const again = await testSize(path, high);
    if (again === 'unknown') return undefined;
    if (again === 'bad') return low;
    if (high === bad) return bad;
    low = high;
  }
  return undefined;
}

/** A size strictly between two others: the hint, then one above it (which shows whether it is the limit), else half way. */
function between(low: number, high: number, hint: number): number {
  if (hint > low && hint < high) return hint;
  return hint === low && low + 1 < high ? low + 1 : (low + high) >>> 1;
}
