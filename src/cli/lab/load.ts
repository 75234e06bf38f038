/** The load phase: one TCP stream and a pinger run between two pods while another host joins and leaves. */
import { setTimeout as sleep } from 'node:timers/promises';
import { messageOf } from '../../errors.js';
import { type CheckResult, type Finding, isUnreachable } from './checks.js';
import { dropsOf } from '../counters.js';
import type { Sampler } from './figures.js';
import type { Lab, LabHost } from './lab.js';

/** A stream that pauses longer than this was disturbed: TCP's own recovery takes a few hundred milliseconds. */
const STALL_MS = 1_000;
/** A share of pings may be lost to queues that a TCP stream at full speed fills. */
const PING_LOSS = 0.02;
const REACH_TIMEOUT_MS = 10_000;
/** Drops of the leave check: the packets sent to an address whose lease is gone. */
export const LEAVE_PROVOKES: Readonly<Record<string, number>> = { dropNoRoute: 10 };

/** Queues that overflow when senders are faster than the machine: how TCP finds its speed, up to this share. */
const CONGESTION: ReadonlySet<string> = new Set([
  'dropTunQueue',
  'dropSocketOverflow',
  'dropSocketFull',
  'dropTunFull',
]);
const CONGESTION_SHARE = 0.005;

async function finding(name: string, work: () => Promise<Finding>): Promise<CheckResult> {
  try {
    return { name, ...(await work()) };
  } catch (error) {
    return { name, ok: false, detail: messageOf(error) };
  }
}

/**
 * Runs the load for `durationSeconds`, or longer if joining and leaving takes longer.
 *
 * @param report is called with each result as it comes: `join`, `leave`, `traffic`
 */
export async function runLoad(
  lab: Lab,
  sampler: Sampler,
  durationSeconds: number,
  report: (result: CheckResult) => void,
): Promise<void> {
  const [a, b] = lab.pair;
  await sampler.tick();
  await b.endpoint.call('startStream', { host: a.pod.address.toString() });
  sampler.loadStarts();
  const start = performance.now();
  // The stream gets going before it is disturbed.
  await sleep(Math.min(1000, durationSeconds * 250));
  let joined: LabHost | undefined;
  report(
    await finding('join', async () => {
      const began = performance.now();
      joined = await lab.addHost();
      const ready = performance.now();
      const [from, to] = await reach(lab, joined);
      const detail = `host ${String(joined.place.number)} (${joined.node.subnet.toString()}) up in ${(ready - began).toFixed(0)} ms, reached ${to} ms later, and reaches others ${from} ms later`;
      return { ok: true, detail };
    }),
  );
  const guest = joined;
  report(
    await finding('leave', async () => {
      if (guest === undefined) return { ok: false, detail: 'there was no host to leave' };
      return await leave(lab, guest);
    }),
  );
  await sleep(Math.max(0, start + durationSeconds * 1000 - performance.now()));
  await sampler.tick();
  sampler.loadEnds();
  await b.endpoint.call('stopStream', {});
  report(await finding('traffic', () => Promise.resolve(judgeTraffic(sampler))));
}

/** Milliseconds until the new host's pod reaches another pod, and until another pod reaches it. */
async function reach(lab: Lab, guest: LabHost): Promise<readonly [string, string]> {
  const start = performance.now();
  const [a, b] = lab.pair;
  const until = async (from: LabHost, to: LabHost): Promise<string> => {
    const isReached = await from.endpoint.reaches(to.pod.address.toString(), start + REACH_TIMEOUT_MS);
    if (isReached) return (performance.now() - start).toFixed(0);
    const route = `${String(from.place.number)}→${String(to.place.number)}`;
    throw new Error(`${route}: no echo within ${String(REACH_TIMEOUT_MS / 1000)} s`);
  };
  return await Promise.all([until(guest, a), until(b, guest)]);
}

async function leave(lab: Lab, guest: LabHost): Promise<Finding> {
  const [a] = lab.pair;
  const subnet = guest.node.subnet.toString();
  const address = guest.pod.address.toString();
  await lab.removeHost(guest);
  const start = performance.now();
  for (;;) {
    const { hosts } = await lab.snapshot();
    if (hosts.every(({ status }) => !status.routed.includes(subnet))) break;
    if (performance.now() > start + REACH_TIMEOUT_MS) {
      return {
        ok: false,
        detail: `${subnet} is still routed ${String(REACH_TIMEOUT_MS / 1000)} s after its host left`,
      };
    }
    await sleep(20);
  }
  const withdrawn = (performance.now() - start).toFixed(0);
  const { outcome } = await a.endpoint.call('connect', { host: address, timeoutMs: 2000 });
  const ok = isUnreachable(lab, outcome);
  return { ok, detail: `${subnet} withdrawn within ${withdrawn} ms, its pod: ${outcome}` };
}

function judgeTraffic(sampler: Sampler): Finding {
  const { longestStallMs, bytes, error } = sampler.stream;
  const { sent, lost } = sampler.pings;
  const pause = longestStallMs < 1 ? 'no pause' : `longest pause ${longestStallMs.toFixed(0)} ms`;
  const detail = `${(bytes / 1e9).toFixed(2)} GB over one TCP stream, ${pause}, ${String(lost)} of ${String(sent)} pings lost`;
  if (error !== undefined) return { ok: false, detail: `${detail}; the stream broke: ${error}` };
  return { ok: bytes > 0 && longestStallMs <= STALL_MS && lost <= sent * PING_LOSS, detail };
}

/**
 * Judges all drops of the run.
 *
 * @param provoked how much of which counter the checks themselves account for, at most
 */
export function judgeDrops(
  totals: Readonly<Record<string, number>>,
  provoked: Readonly<Record<string, number>>,
): CheckResult {
  const delivered = totals['ingressPackets'] ?? 0;
  const unexpected: string[] = [];
  const expected: string[] = [];
  for (const [name, count] of Object.entries(dropsOf(totals))) {
    // IPv6 routers' and neighbours' multicast of the hosts' own kernels; the overlay carries unicast.
    const limit =
      name === 'dropMulticast' ? Infinity : CONGESTION.has(name) ? delivered * CONGESTION_SHARE : (provoked[name] ?? 0);
    (count > limit ? unexpected : expected).push(`${name} ${String(count)}`);
  }
  const seen = expected.length === 0 ? 'none' : `none but ${expected.join(', ')} (provoked or congestion)`;
  return {
    name: 'drops',
    ok: unexpected.length === 0,
    detail: unexpected.length === 0 ? `${seen}; ${String(delivered)} packets delivered` : unexpected.join(', '),
  };
}
