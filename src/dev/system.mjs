// What set-up asks of the machine: a Node version, programs, the package manager that can install them.

import { spawnSync } from 'node:child_process';
import { accessSync, constants, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';

/** A set-up problem as one line for a person: what was tried, with which value, what to do. */
export class SetupError extends Error {
  /** @param {string} message @param {string} [output] what the failed program printed */
  constructor(message, output = '') {
    super(message);
    this.name = 'SetupError';
    this.output = output;
  }
}

/** Set-up talks on stderr: stdout belongs to the command that it prepares (`lab --json`). */
export function say(line) {
  process.stderr.write(`podwire set-up: ${line}\n`);
}

/** Vite and oxlint ask for 20.19; the library itself for 20. */
export const OLDEST_NODE = [20, 19];

/** @throws {SetupError} for a Node that is too old. @param {string} version such as `20.19.0` */
export function checkNode(version = process.versions.node) {
  const [major, minor] = version.split('.').map(Number);
  const [needMajor, needMinor] = OLDEST_NODE;
  if (major > needMajor || (major === needMajor && minor >= needMinor)) return;
  throw new SetupError(
    `this is Node ${version}, podwire needs ${needMajor}.${needMinor} or newer: install a current Node (https://nodejs.org)`,
  );
}

/** Programs by need, and the package that carries each, per distribution family. */
const PACKAGES = {
  ip: { debian: ['iproute2'], fedora: ['iproute'], alpine: ['iproute2'], arch: ['iproute2'], suse: ['iproute2'] },
  cc: {
    debian: ['gcc', 'libc6-dev'],
    fedora: ['gcc', 'glibc-devel'],
    alpine: ['gcc', 'musl-dev', 'linux-headers'],
    arch: ['gcc'],
    suse: ['gcc', 'glibc-devel'],
  },
  ping: {
    debian: ['iputils-ping'],
    fedora: ['iputils'],
    alpine: ['iputils'],
    arch: ['iputils'],
    suse: ['iputils'],
  },
  unshare: {
    debian: ['util-linux'],
    fedora: ['util-linux'],
    alpine: ['util-linux'],
    arch: ['util-linux'],
    suse: ['util-linux'],
  },
  iperf3: { debian: ['iperf3'], fedora: ['iperf3'], alpine: ['iperf3'], arch: ['iperf3'], suse: ['iperf'] },
  ethtool: { debian: ['ethtool'], fedora: ['ethtool'], alpine: ['ethtool'], arch: ['ethtool'], suse: ['ethtool'] },
};

const INSTALL = {
  debian: 'apt-get install -y',
  fedora: 'dnf install -y',
  alpine: 'apk add',
  arch: 'pacman -S --needed',
  suse: 'zypper install -y',
};

/** The distribution family that an /etc/os-release text names, or undefined. @param {string} text */
export function family(text) {
  const value = (key) => new RegExp(`^${key}="?([^"\n]*)"?$`, 'm').exec(text)?.[1] ?? '';
  const names = [value('ID'), ...value('ID_LIKE').split(/\s+/)];
  const known = { debian: 'debian', ubuntu: 'debian', fedora: 'fedora', rhel: 'fedora', centos: 'fedora' };
  Object.assign(known, { alpine: 'alpine', arch: 'arch', suse: 'suse', opensuse: 'suse', sles: 'suse' });
  for (const name of names) if (known[name] !== undefined) return known[name];
  return undefined;
}

function thisFamily() {
  for (const file of ['/etc/os-release', '/usr/lib/os-release']) {
    try {
      return family(readFileSync(file, 'utf8'));
    } catch {
      // The other place may have it.
    }
  }
  return undefined;
}

/** Whether a program is on the PATH or in an sbin directory. @param {string} command */
export function available(command, path = `${process.env.PATH ?? ''}:/usr/local/sbin:/usr/sbin:/sbin`) {
  return path.split(':').some((directory) => {
    try {
      accessSync(join(directory, command), constants.X_OK);
      return statSync(join(directory, command)).isFile();
    } catch {
      return false;
    }
  });
}

/**
 * The one line a person types to install what carries these programs.
 *
 * @param {string[]} commands @param {string | undefined} system the {@link family} @param {number} [uid]
 */
export function installLine(commands, system, uid = process.getuid()) {
  if (system === undefined) return `install the programs ${commands.join(', ')}`;
  const packages = [...new Set(commands.flatMap((command) => PACKAGES[command][system]))];
  return `${uid === 0 ? '' : 'sudo '}${INSTALL[system]} ${packages.join(' ')}`;
}

function apt(args) {
  const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' };
  return spawnSync('apt-get', args, { encoding: 'utf8', env, timeout: 300_000 });
}

/**
 * Makes sure that programs are there: as root on Debian and Ubuntu installs what is missing and says so.
 *
 * @param {{ required: string[], optional?: string[], optionalTried?: boolean, why: string }} needs
 *   `optional` ones never fail, and are not tried again when `optionalTried`.
 * @returns {boolean} whether an optional program was tried and is still missing
 * @throws {SetupError} a required program is missing and cannot be installed: the one line to run
 */
export function ensureCommands({ required, optional = [], optionalTried = false, why }) {
  const lacking = required.filter((command) => !available(command));
  const wished = optionalTried ? [] : optional.filter((command) => !available(command));
  const system = thisFamily();
  const able = system === 'debian' && process.getuid() === 0 && available('apt-get');
  if (lacking.length === 0 && (wished.length === 0 || !able)) return false;
  if (!able) {
    throw new SetupError(`${lacking.join(' and ')} missing (for ${why}); run: ${installLine(lacking, system)}`);
  }
  const all = [...lacking, ...wished];
  const packages = [...new Set(all.flatMap((command) => PACKAGES[command].debian))];
  say(`installing ${packages.join(' ')} with apt-get (for ${why})`);
  let result = apt(['install', '-y', '-qq', '--no-install-recommends', ...packages]);
  if (result.status !== 0) {
    apt(['update', '-qq']);
    result = apt(['install', '-y', '-qq', '--no-install-recommends', ...packages]);
  }
  const still = lacking.filter((command) => !available(command));
  if (still.length > 0) {
    const output = `${result.stdout ?? ''}${result.stderr ?? ''}`;
    throw new SetupError(`apt-get did not bring ${still.join(' and ')}; run: ${installLine(still, system)}`, output);
  }
  return wished.some((command) => !available(command));
}
