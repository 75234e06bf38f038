/**
 * What the lab needs of the kernel, and how an ordinary user gets it: the same command again inside an unprivileged
 * user, network, mount and PID namespace, with a /run of its own for iproute2.
 */
import { spawn, spawnSync } from 'node:child_process';
import { accessSync, constants, readFileSync } from 'node:fs';
import { constants as system } from 'node:os';
import { errnoOf, PodwireError } from '../../errors.js';

const CAP_NET_ADMIN = 12n;
const CAP_SYS_ADMIN = 21n;
/** Set for the copy inside the namespace, so that it does not try again. */
const MARK = 'PODWIRE_LAB_NAMESPACE';

const UNSHARE: readonly string[] = [
  '--user',
  '--map-root-user',
  '--net',
  '--mount',
  '--pid',
  '--fork',
  '--kill-child',
  '--mount-proc',
];

/** iproute2 keeps its namespaces below /run (or /var/run, where that is a directory of its own). */
const PRIVATE_RUN =
  'mount -t tmpfs tmpfs /run && { [ -L /var/run ] || [ ! -d /var/run ] || mount -t tmpfs tmpfs /var/run; } && exec "$@"';

export type Privilege =
  /** Everything can be made here. */
  | 'full'
  /** Not here, but maybe in a namespace of our own. */
  | 'none';

/** @param statusText /proc/self/status */
export function privilegeOf(statusText: string): Privilege {
  const bits = BigInt(`0x${/^CapEff:\s*([0-9a-f]+)$/m.exec(statusText)?.[1] ?? '0'}`);
  const has = (capability: bigint): boolean => ((bits >> capability) & 1n) === 1n;
  return has(CAP_NET_ADMIN) && has(CAP_SYS_ADMIN) ? 'full' : 'none';
}

export function privilege(): Privilege {
  return privilegeOf(readFileSync('/proc/self/status', 'utf8'));
}

/**
 * @throws {PodwireError} `DEVICE` or `PERMISSION`: /dev/net/tun is missing or not to be opened, and what to do
 */
export function checkTun(path = '/dev/net/tun'): void {
  try {
    accessSync(path, constants.R_OK | constants.W_OK);
  } catch (error) {
    const errno = errnoOf(error) ?? 'unknown error';
    if (errno === 'EACCES') {
      throw new PodwireError(
        'PERMISSION',
        `cannot open ${path} as this user (${errno}): run the lab as root, or allow it: sudo chmod 666 ${path}`,
        { cause: error, errno },
      );
    }
    throw new PodwireError(
      'DEVICE',
      `cannot open ${path} (${errno}): load the driver (modprobe tun), in a container pass --device ${path}, or make it: mkdir -p /dev/net && mknod ${path} c 10 200`,
      { cause: error, errno },
    );
  }
}

/** Why the kernel refuses unprivileged namespaces, or undefined when it allows them. */
export function namespaceRefusal(): string | undefined {
  const probe = spawnSync('unshare', [...UNSHARE, 'true'], { encoding: 'utf8' });
  if (probe.error !== undefined) {
    return errnoOf(probe.error) === 'ENOENT' ? 'there is no unshare command (util-linux)' : probe.error.message;
  }
  return probe.status === 0 ? undefined : probe.stderr.trim().split('\n').at(-1);
}

/** The switch that forbids unprivileged namespaces here, as the command that turns it, or undefined. */
function forbiddingSwitch(): string | undefined {
  const switches: readonly [string, (value: number) => boolean, string][] = [
    ['kernel.apparmor_restrict_unprivileged_userns', (value) => value !== 0, '0'],
    ['kernel.unprivileged_userns_clone', (value) => value === 0, '1'],
    ['user.max_user_namespaces', (value) => value === 0, '10000'],
  ];
  for (const [name, forbids, allowed] of switches) {
    try {
      const value = Number(readFileSync(`/proc/sys/${name.replaceAll('.', '/')}`, 'utf8'));
      if (forbids(value)) return `sudo sysctl -w ${name}=${allowed}`;
    } catch {
      // This kernel does not have that switch.
    }
  }
  return undefined;
}

/** Whether this process is the copy inside the namespace. */
export function insideOwnNamespace(): boolean {
  return process.env[MARK] === '1';
}

/**
 * Runs this very command line again inside an unprivileged namespace and returns its exit code. The copy ends in good
 * order when we are asked to stop or disappear.
 *
 * @throws {PodwireError} `PERMISSION` when the kernel does not allow it: what is needed
 */
export async function runInOwnNamespace(): Promise<number> {
  const refusal = namespaceRefusal();
  if (refusal !== undefined) {
    const remedy = forbiddingSwitch();
    throw new PodwireError(
      'PERMISSION',
      `the lab needs root (sudo npm start), or a kernel that lets users make namespaces (unshare: ${refusal})${remedy === undefined ? '' : `: ${remedy}`}`,
    );
  }
  const [script = '', ...args] = process.argv.slice(1);
  const command = ['sh', '-c', PRIVATE_RUN, 'sh', process.execPath, ...process.execArgv, script, ...args];
  const child = spawn('unshare', [...UNSHARE, '--', ...command], {
    stdio: ['inherit', 'inherit', 'inherit', 'ipc'],
    env: { ...process.env, [MARK]: '1', PATH: `${process.env['PATH'] ?? ''}:/usr/sbin:/sbin:/usr/bin:/bin` },
  });
  const stop = (signal: NodeJS.Signals): void => {
    if (child.connected) child.send({ stop: signal });
  };
  const signals: readonly NodeJS.Signals[] = ['SIGINT', 'SIGTERM', 'SIGHUP'];
  for (const signal of signals) process.on(signal, stop);
  child.on('message', () => {
    if (child.pid !== undefined && child.connected) child.send({ outsidePid: childOf(child.pid) });
  });
  try {
    return await new Promise<number>((resolve, reject) => {
      child.once('error', reject);
      child.once('exit', (code, signal) => resolve(code ?? 128 + (signal === null ? 0 : system.signals[signal])));
    });
  } finally {
    for (const signal of signals) process.off(signal, stop);
  }
}

/** The first child of a process: what `unshare --fork` runs. */
function childOf(pid: number): number | undefined {
  try {
    const [first] = readFileSync(`/proc/${String(pid)}/task/${String(pid)}/children`, 'utf8').split(' ');
    return first === undefined || first === '' ? undefined : Number(first);
  } catch {
    return undefined;
  }
}

/** What the copy hears from the process that started it. */
export interface Outside {
  /** Our process id where the user is, for nsenter. */
  readonly pid: number | undefined;
}

/**
 * For the copy: asks the outside for our process id there, and from then on ends with it.
 *
 * @param onStop called when the outside was asked to stop, or is gone
 */
export async function listenToOutside(onStop: (signal: NodeJS.Signals) => void): Promise<Outside> {
  if (process.send === undefined) return { pid: undefined };
  process.on('disconnect', () => onStop('SIGTERM'));
  return await new Promise((resolve) => {
    process.on('message', (message: { stop?: NodeJS.Signals; outsidePid?: number }) => {
      if (message.stop !== undefined) onStop(message.stop);
      else resolve({ pid: message.outsidePid });
    });
    process.send?.({ ready: true });
  });
}

/** The command prefix that enters the copy's namespaces from outside. */
export function enterCommand(outside: Outside): string {
  if (outside.pid === undefined) return '';
  return `nsenter -t ${String(outside.pid)} -U --preserve-credentials -m -n -p `;
}
