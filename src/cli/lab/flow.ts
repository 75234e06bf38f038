/** Whether a flow stays with one worker on each host (design 2), read from the agents' counters by worker. */
import type { Check, Finding } from './checks.js';
import type { Lab, Snapshot } from './lab.js';
import { startPings, stopPings } from './pings.js';

const FLOWS = 4;
const SLICES = 3;
const ROUNDS = 60;
/** A worker with less than this share of a slice's packets saw something else, not the flow. */
const SHARE = 0.1;

/** Per host, the workers that moved packets between two snapshots. */
export function activeWorkers(before: Snapshot, after: Snapshot): readonly (readonly number[])[] {
  return after.hosts.map(({ host, status }) => {
    const earlier = before.hosts.find((entry) => entry.host === host)?.status.workers;
    const moved = status.workers.map((worker, index) => packets(worker) - packets(earlier?.[index]));
    const all = moved.reduce((total, count) => total + count, 0);
    return moved.flatMap((count, index) => (count > all * SHARE ? [index] : []));
  });
}

function packets(counters: Readonly<Record<string, number>> | undefined): number {
  return (counters?.['egressPackets'] ?? 0) + (counters?.['ingressPackets'] ?? 0);
}

/**
 * Judges the workers that carried one flow, slice by slice, on one host: it may move once, then it stays.
 *
 * @returns how often the flow moved at least; several workers within one slice are a move each, and which of them the
 *   flow ended on is not known
 */
export function movesOf(slices: readonly (readonly number[])[]): number {
  let moves = 0;
  let previous: number | undefined;
  for (const workers of slices) {
    if (workers.length === 0) continue;
    const [only] = workers;
    if (workers.length > 1) moves += workers.length - 1;
    else if (previous !== undefined && only !== previous) moves += 1;
    previous = workers.length === 1 ? only : undefined;
  }
  return moves;
}

export const flowStays: Check = {
  name: 'flow-stays',
  run: async (lab: Lab): Promise<Finding> => {
    // The pings are a flow of their own.
    await stopPings(lab);
    try {
      return await watchFlows(lab);
    } finally {
      await startPings(lab);
    }
  },
};

async function watchFlows(lab: Lab): Promise<Finding> {
  const [a, b] = lab.pair;
  const host = b.pod.address.toString();
  const paths: string[] = [];
  let worst = 0;
  let received = 0;
  let before = await lab.snapshot();
  const workers = Math.max(...before.hosts.map(({ status }) => status.workers.length));
  for (let flow = 1; flow <= FLOWS; flow += 1) {
    const slices: (readonly (readonly number[])[])[] = [];
    for (let slice = 0; slice < SLICES; slice += 1) {
      const args = { host, flow: `flow-stays-${String(flow)}`, rounds: ROUNDS, timeoutMs: 10_000 };
      received += (await a.endpoint.call('pingPong', args)).received;
      const after = await lab.snapshot();
      slices.push(activeWorkers(before, after));
      before = after;
    }
    const seen = [0, 1].map((index) => slices.map((slice) => slice[index] ?? []));
    worst = Math.max(worst, ...seen.map(movesOf));
    paths.push(seen.map((own) => [...new Set(own.flat())].join(',')).join('→'));
  }
  const rounds = FLOWS * SLICES * ROUNDS;
  const where =
    workers === 1 ? 'one worker each, nothing to hop to' : `workers of host 1→2 by flow: ${paths.join(' ')}`;
  const detail = `${String(FLOWS)} flows, ${String(received)}/${String(rounds)} round trips; ${where}`;
  return { ok: received === rounds && worst <= 1, detail };
}
