// @ts-check
/**
 * Processor time and memory, and how quiet the machine is.
 *
 * Machine processor time is the sum of /proc/stat's busy columns. Most kernels sample them by tick (CONFIG_HZ), so they read
 * low when work is short and bursty: compare figures of one run, do not quote them alone. A process's time (/proc/PID/stat)
 * is exact on such kernels; work done for it in softirqs is not part of it.
 */
import { readFileSync } from 'node:fs';
import { arch, cpus, loadavg, release, totalmem, type } from 'node:os';
import { setTimeout as delay } from 'node:timers/promises';
import { run } from './process.mjs';

/** /proc counts in units of 10 ms on every Linux that Node runs on (USER_HZ is 100). */
const SECONDS_PER_TICK = 0.01;

/**
 * @typedef {object} MachineCpu seconds since boot, over all processors
 * @property {number} busy user, nice, system, irq, softirq
 * @property {number} idle idle and iowait
 * @property {number} steal taken by the hypervisor
 * @property {number} at seconds, monotonic
 */

/** @returns {MachineCpu} */
export function machineCpu() {
  const line = readFileSync('/proc/stat', 'utf8').split('\n', 1)[0] ?? '';
  const [user = 0, nice = 0, system = 0, idle = 0, iowait = 0, irq = 0, softirq = 0, steal = 0] = line
    .split(/\s+/)
    .slice(1)
    .map((ticks) => Number(ticks) * SECONDS_PER_TICK);
  return {
    busy: user + nice + system + irq + softirq,
    idle: idle + iowait,
    steal,
    at: performance.now() / 1000,
  };
}

/**
 * @param {MachineCpu} before
 * @param {MachineCpu} after
 */
export function machineCpuBetween(before, after) {
  const seconds = after.at - before.at;
  const busy = after.busy - before.busy;
  const steal = after.steal - before.steal;
  const idle = after.idle - before.idle;
  const total = busy + steal + idle;
  return {
    seconds,
    busySeconds: busy,
    idleSeconds: idle,
    busyPercent: percent(busy, total),
    stealPercent: percent(steal, total),
  };
}

/**
 * @param {number} part
 * @param {number} whole
 */
function percent(part, whole) {
  return whole > 0 ? (100 * part) / whole : 0;
}

/**
 * Processor seconds that a process and its threads have used, user and system; 0 when it is gone.
 * @param {number} pid
 */
function processCpu(pid) {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return (Number(fields[11]) + Number(fields[12])) * SECONDS_PER_TICK;
  } catch {
    return 0;
  }
}

/** @param {readonly number[]} pids */
export function processesCpu(pids) {
  return pids.reduce((sum, pid) => sum + processCpu(pid), 0);
}

/**
 * Resident memory of the largest of these processes, MiB: now and at most so far.
 * @param {readonly number[]} pids
 */
export function processesMemory(pids) {
  let nowMiB = 0;
  let peakMiB = 0;
  for (const pid of pids) {
    let status = '';
    try {
      status = readFileSync(`/proc/${pid}/status`, 'utf8');
    } catch {
      continue; // gone; whoever owns it says so
    }
    nowMiB = Math.max(nowMiB, Number(/^VmRSS:\s+(\d+)/m.exec(status)?.[1] ?? 0) / 1024);
    peakMiB = Math.max(peakMiB, Number(/^VmHWM:\s+(\d+)/m.exec(status)?.[1] ?? 0) / 1024);
  }
  return { nowMiB, peakMiB };
}

/**
 * How busy the machine is before the run adds its own load.
 * @param {number} seconds
 */
export async function observeNoise(seconds) {
  const before = machineCpu();
  await delay(seconds * 1000);
  const { busyPercent, stealPercent } = machineCpuBetween(before, machineCpu());
  return { loadavg: loadavg(), busyPercent, stealPercent };
}

/** What the figures were measured on. */
export async function describeMachine() {
  const iperf3 = await run(['iperf3', '--version'], { allowFailure: true }).catch(() => undefined);
  return {
    kernel: `${type()} ${release()} ${arch()}`,
    cpu: cpus()[0]?.model ?? 'unknown',
    cores: cpus().length,
    memoryMiB: Math.round(totalmem() / 2 ** 20),
    node: process.version,
    iperf3: iperf3?.stdout.split('\n', 1)[0] ?? 'not installed',
    cpuAccounting: 'machine: /proc/stat, sampled by tick on most kernels (reads low); processes: /proc/PID/stat',
  };
}
