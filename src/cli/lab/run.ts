/** One run of the lab, from the first namespace to the last. */
import { mkdtemp, rm } from 'node:fs/promises';
import { messageOf } from '../../errors.js';
import { CHECKS, runCheck, SECOND_FAMILY_CHECKS, type CheckResult } from './checks.js';
import { Sampler } from './figures.js';
import { flowStays } from './flow.js';
import { Lab } from './lab.js';
import { directoryPrefix, namespacePrefix, removeLeftovers } from './leftovers.js';
import { judgeDrops, LEAVE_PROVOKES, runLoad } from './load.js';
import type { Overlay } from './overlay.js';
import { startPings } from './pings.js';
import { hostEntries, tryCommands, type LabReport } from './report.js';
import type { View } from './view.js';

export interface RunOptions {
  /** Length of the load phase. */
  readonly durationSeconds: number;
  readonly hosts: number;
  /** Stay up after the checks until the signal aborts. */
  readonly hold: boolean;
  /** Put before the commands that a held lab suggests. */
  readonly enter?: string;
}

export interface RunHooks {
  /** Makes what joins the hosts; files of the run go below `directory`, which is removed at the end. */
  readonly overlay: (directory: string) => Promise<Overlay>;
  readonly view: View;
  /** The result, before a held lab waits. */
  readonly report: (report: LabReport) => void;
  /** Ends the run: everything is removed, and the signal's reason thrown (except while held). */
  readonly signal: AbortSignal;
}

/**
 * Runs the lab and removes whatever it made, however it ends.
 *
 * @returns the report that `hooks.report` got
 * @throws the signal's reason, or what could not be removed; a lab that could not run is a report with an `error`
 */
export async function runLab(options: RunOptions, hooks: RunHooks): Promise<LabReport> {
  const { view, signal } = hooks;
  const control = new AbortController();
  const forward = (): void => control.abort(signal.reason);
  signal.addEventListener('abort', forward, { once: true });
  if (signal.aborted) forward();
  const leftovers = await removeLeftovers();
  if (leftovers.length > 0) view.step(`removed what an earlier run left: ${leftovers.join(' ')}`);
  const directory = await mkdtemp(directoryPrefix());
  const checks: CheckResult[] = [];
  let report: LabReport | undefined;
  try {
    const overlay = await hooks.overlay(directory);
    view.step(`podwire lab: ${String(options.hosts)} hosts, ${overlay.description}`);
    const lab = new Lab(namespacePrefix(), overlay, control);
    const work = perform(lab, options, view, checks, control.signal);
    try {
      report = await Promise.race([work, aborted(control.signal)]);
      view.end();
      hooks.report(report);
      return options.hold ? await aborted(control.signal) : report;
    } finally {
      // Work that waits for a program of the lab fails at once; then nothing goes on any more.
      if (control.signal.aborted) await lab.halt();
      await work.catch(() => undefined);
      view.end();
      await lab[Symbol.asyncDispose]();
    }
  } catch (error) {
    if (signal.aborted && report === undefined) throw signal.reason;
    // Asked to stop while it was held: that is how a held lab ends.
    if (signal.aborted && error === signal.reason && report !== undefined) return report;
    // An agent that died while the lab was held, or something that could not be removed.
    if (report !== undefined) throw error;
    const failed: LabReport = { ok: false, error: messageOf(error), checks, hosts: [] };
    hooks.report(failed);
    return failed;
  } finally {
    signal.removeEventListener('abort', forward);
    await rm(directory, { recursive: true, force: true });
  }
}

async function perform(
  lab: Lab,
  options: RunOptions,
  view: View,
  checks: CheckResult[],
  signal: AbortSignal,
): Promise<LabReport> {
  await lab.start(options.hosts);
  view.hosts(lab.hosts);
  const sampler = new Sampler(lab, (sample) => view.sample(sample));
  const note = (result: CheckResult): void => {
    signal.throwIfAborted();
    checks.push(result);
    view.check(result);
  };
  await startPings(lab);
  sampler.start();
  try {
    for (const check of [...CHECKS, ...(lab.traits.isKernel ? [] : [flowStays])]) {
      note(await runCheck(check, lab));
      if (cutOff(checks)) throw new Error('the pods do not reach each other: the other checks were not tried');
    }
    for (const family of lab.traits.families.slice(1)) {
      for (const check of SECOND_FAMILY_CHECKS) note(await runCheck(check, lab, family));
    }
    await runLoad(lab, sampler, options.durationSeconds, note);
  } finally {
    await sampler.stop();
  }
  const { totals } = await lab.snapshot();
  // Where the kernel carries the packets it also drops them, and tells nobody why.
  if (!lab.traits.isKernel) note(judgeDrops(totals, provoked()));
  return {
    ok: checks.every((check) => check.ok),
    checks,
    figures: sampler.figures(totals),
    hosts: hostEntries(lab.hosts),
    ...(options.hold ? { commands: tryCommands(lab.hosts, options.enter) } : {}),
  };
}

/** Whether neither ping nor TCP works: then every other check would only wait for its time limit. */
function cutOff(checks: readonly CheckResult[]): boolean {
  return checks.length === 2 && checks.every((check) => !check.ok);
}

/** What the checks account for, all together. */
function provoked(): Record<string, number> {
  const all: Record<string, number> = { ...LEAVE_PROVOKES };
  for (const check of CHECKS) {
    for (const [name, count] of Object.entries(check.provokes ?? {})) all[name] = (all[name] ?? 0) + count;
  }
  return all;
}

/** Rejects with the signal's reason when it aborts; never resolves. */
async function aborted(signal: AbortSignal): Promise<never> {
  return await new Promise<never>((_, reject) => {
    const stop = (): void => reject(signal.reason as Error);
    if (signal.aborted) stop();
    else signal.addEventListener('abort', stop, { once: true });
  });
}
