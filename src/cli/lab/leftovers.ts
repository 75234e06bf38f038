/**
 * Names of what the lab makes, and the removal of what an earlier run left behind when it was killed: namespaces
 * `pwlab-<pid>-<start>-…`, the processes in them, and directories `podwire-lab-<pid>-<start>-…`. The start time of the
 * process, as the kernel has it, tells a process id that came back from the run that had it before.
 */
import { readFileSync } from 'node:fs';
import { readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { errnoOf } from '../../errors.js';
import { run } from '../../host/exec.js';

/** /run and not the temporary directory: an unprivileged lab has a /run of its own, as it has its own process ids. */
const DIRECTORY_BASE = '/run';
const NAMESPACE = /^pwlab-(\d+)-([0-9a-z]+)-/;
const DIRECTORY = /^podwire-lab-(\d+)-([0-9a-z]+)-/;

/** When a process started, in clock ticks since boot (proc(5), stat field 22) in base 36, or undefined. */
export function startTime(pid: number): string | undefined {
  let stat: string;
  try {
    stat = readFileSync(`/proc/${String(pid)}/stat`, 'utf8');
  } catch {
    return undefined;
  }
  // The second field is the command in parentheses, which may hold spaces and parentheses itself.
  const ticks = stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19];
  return ticks === undefined ? undefined : Number(ticks).toString(36);
}

function ownIdentity(): string {
  return `${String(process.pid)}-${startTime(process.pid) ?? '0'}`;
}

/** The prefix of all namespaces of this run. */
export function namespacePrefix(): string {
  return `pwlab-${ownIdentity()}-`;
}

/** The prefix of the run's directory; the caller adds something random. */
export function directoryPrefix(): string {
  return join(DIRECTORY_BASE, `podwire-lab-${ownIdentity()}-`);
}

/**
 * Whether a namespace or directory of that name is the lab's, and its run is no more.
 *
 * @param startOf {@link startTime}
 */
export function isAbandoned(name: string, startOf: (pid: number) => string | undefined = startTime): boolean {
  const match = NAMESPACE.exec(name) ?? DIRECTORY.exec(name);
  return match !== null && startOf(Number(match[1])) !== match[2];
}

/** The names of all network namespaces. */
export async function namespaces(): Promise<readonly string[]> {
  const listed = await run('ip', ['netns', 'list']);
  return listed
    .split('\n')
    .map((line) => line.split(' ')[0] ?? '')
    .filter((name) => name !== '');
}

/** Kills what runs in a namespace and deletes it; its links go with it. Fails only when it cannot be deleted. */
export async function removeNamespace(name: string): Promise<void> {
  for (let attempt = 0; attempt < 5; attempt += 1) {
    const pids = (await run('ip', ['netns', 'pids', name])).split('\n').filter((line) => line !== '');
    if (pids.length === 0) break;
    for (const pid of pids) {
      try {
        process.kill(Number(pid), 'SIGKILL');
      } catch (error) {
        if (errnoOf(error) !== 'ESRCH') throw error;
      }
    }
    await sleep(20);
  }
  await run('ip', ['netns', 'delete', name]);
}

/**
 * Removes what runs that are no longer there left behind.
 *
 * @returns what was removed, as names
 */
export async function removeLeftovers(): Promise<readonly string[]> {
  const removed: string[] = [];
  for (const name of await namespaces()) {
    if (!isAbandoned(name)) continue;
    await removeNamespace(name);
    removed.push(name);
  }
  for (const name of await readdir(DIRECTORY_BASE)) {
    if (!isAbandoned(name)) continue;
    await rm(join(DIRECTORY_BASE, name), { recursive: true, force: true });
    removed.push(name);
  }
  return removed;
}
