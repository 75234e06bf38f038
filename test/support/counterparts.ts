import { spawnSync } from 'node:child_process';
import { accessSync, constants, statSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';

/**
 * The real programs that podwire is tested against. None of them is part of podwire: `.ci/counterparts` builds them
 * into the CI cache, `etcd-old` is the one of the distribution's package
 * `etcd-server` (3.4 in Debian 12).
 */
export type Counterpart = 'flanneld' | 'etcd-old' | 'etcd-3.6' | 'etcdctl' | 'wireguard-go';

interface Recipe {
  readonly file: string;
  /** What `--version` must say, where several versions of a program may be on one machine. */
  readonly version?: RegExp;
  readonly from: string;
}

const BUILT = '.ci/counterparts builds it; its directory goes into PODWIRE_TEST_BIN';

const RECIPES: Readonly<Record<Counterpart, Recipe>> = {
  flanneld: { file: 'flanneld', from: BUILT },
  'etcd-old': { file: 'etcd', version: /etcd Version: 3\.[45]\./, from: 'package etcd-server' },
  'etcd-3.6': { file: 'etcd', version: /etcd Version: 3\.6\./, from: BUILT },
  etcdctl: { file: 'etcdctl', from: 'package etcd-client' },
  'wireguard-go': { file: 'wireguard-go', from: BUILT },
};

const found: Map<Counterpart, string | undefined> = new Map();

/** PODWIRE_TEST_BIN (directories, separated by colons), the CI cache, the PATH: the first that has it wins. */
function directories(): string[] {
  const { PODWIRE_TEST_BIN, PODWIRE_CI_CACHE, XDG_CACHE_HOME, PATH } = process.env;
  const cache = PODWIRE_CI_CACHE ?? join(XDG_CACHE_HOME ?? join(homedir(), '.cache'), 'podwire-ci');
  const listed = [...(PODWIRE_TEST_BIN ?? '').split(':'), join(cache, 'counterparts'), ...(PATH ?? '').split(':')];
  return [...listed.filter(Boolean), '/usr/local/sbin', '/usr/sbin', '/usr/local/bin', '/usr/bin'];
}

function find({ file, version }: Recipe): string | undefined {
  return directories()
    .map((directory) => join(directory, file))
    .find((path) => {
      try {
        accessSync(path, constants.X_OK);
        if (!statSync(path).isFile()) return false;
      } catch {
        return false;
      }
      if (version === undefined) return true;
      const { stdout, stderr } = spawnSync(path, ['--version'], { encoding: 'utf8', timeout: 10_000 });
      return version.test(`${stdout}${stderr}`);
    });
}

/** The program's path, or `undefined`; looked up once in a process. */
export function findCounterpart(name: Counterpart): string | undefined {
  if (!found.has(name)) found.set(name, find(RECIPES[name]));
  return found.get(name);
}

/** The program's path. For tests behind `missing({ counterparts: [...] })`. */
export function counterpart(name: Counterpart): string {
  const path = findCounterpart(name);
  if (path === undefined) throw new Error(`${describeCounterpart(name)} is missing`);
  return path;
}

/** The name, and where the program comes from. */
export function describeCounterpart(name: Counterpart): string {
  return `${name} (${RECIPES[name].from})`;
}
