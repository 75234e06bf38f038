/** Finds the original: two daemons for one subnet file would take each other's rules and routes away. */
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { join, resolve } from 'node:path';

/** flanneld's own default. */
const DEFAULT_SUBNET_FILE = '/run/flannel/subnet.env';

/**
 * The process id of a flanneld that runs in our network namespace and writes `subnetFile`. Undefined when there is
 * none, or none that may be looked at: a hardened unit hides other processes (its `Conflicts=` is the guard there).
 *
 * @param subnetFile absolute.
 */
export function findFlanneld(subnetFile: string, proc: string = '/proc'): number | undefined {
  const ownNetwork = link(join(proc, 'self', 'ns', 'net'));
  for (const name of readdirSync(proc)) {
    if (!/^\d+$/.test(name)) continue;
    const directory = join(proc, name);
    if (text(join(directory, 'comm')) !== 'flanneld\n') continue;
    if (link(join(directory, 'ns', 'net')) !== ownNetwork) continue;
    if (subnetFileOf(directory) === subnetFile) return Number(name);
  }
  return undefined;
}

/** As flanneld reads it: the command line before the environment, the last of equal flags. */
function subnetFileOf(directory: string): string {
  const [, ...args] = text(join(directory, 'cmdline')).split('\0');
  let file: string | undefined;
  for (const [index, arg] of args.entries()) {
    const match = /^--?subnet-file(?:=(.*))?$/s.exec(arg);
    if (match !== null) file = match[1] ?? args[index + 1];
  }
  file ??= /(?:^|\0)FLANNELD_SUBNET_FILE=([^\0]*)/.exec(text(join(directory, 'environ')))?.[1];
  return resolve(link(join(directory, 'cwd')) ?? '/', file ?? DEFAULT_SUBNET_FILE);
}

/** Empty for a process that has ended meanwhile or may not be looked at. */
function text(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
}

function link(path: string): string | undefined {
  try {
    return readlinkSync(path);
  } catch {
    return undefined;
  }
}
