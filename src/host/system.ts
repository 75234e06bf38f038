/**
 * What the host must offer before anything is set up (kernel, TUN device, capability), and the kernel switches that a
 * pod network needs.
 */
import { constants } from 'node:fs';
import { open, readFile, writeFile } from 'node:fs/promises';
import { release } from 'node:os';
import { errnoOf, messageOf, PodwireError } from '../errors.js';

/** UDP_SEGMENT arrived with it, and no supported Node runs on less. */
const OLDEST_KERNEL = [4, 18] as const;
const CAP_NET_ADMIN = 12n;

/** Where the checks read; replaced in tests. */
export interface SystemPaths {
  readonly kernelRelease?: string;
  readonly procStatus?: string;
}

/**
 * One clear line for a host that cannot run podwire, before anything is touched.
 *
 * @throws {PodwireError} `UNSUPPORTED` (kernel) or `PERMISSION` (no CAP_NET_ADMIN).
 */
export async function checkSystem(paths: SystemPaths = {}): Promise<void> {
  checkKernel(paths.kernelRelease ?? release());
  await checkCapability(paths.procStatus ?? '/proc/self/status');
}

function checkKernel(text: string): void {
  const match = /^(\d+)\.(\d+)/.exec(text);
  if (match === null) return;
  const [major, minor] = [Number(match[1]), Number(match[2])];
  const [oldestMajor, oldestMinor] = OLDEST_KERNEL;
  if (major < oldestMajor || (major === oldestMajor && minor < oldestMinor)) {
    throw new PodwireError(
      'UNSUPPORTED',
      `Linux ${text} is too old: podwire needs ${OLDEST_KERNEL.join('.')} or newer (6.2 or newer for every offload)`,
    );
  }
}

async function checkCapability(path: string): Promise<void> {
  let mask: string | undefined;
  try {
    mask = /^CapEff:\s*([0-9a-f]+)$/im.exec(await readFile(path, 'utf8'))?.[1];
  } catch {
    // Without a readable /proc the kernel itself will say what is missing.
  }
  if (mask === undefined) return;
  if (((BigInt(`0x${mask}`) >> CAP_NET_ADMIN) & 1n) === 0n) {
    throw new PodwireError(
      'PERMISSION',
      'creating a TUN device and routes needs CAP_NET_ADMIN: run as root (or: sudo, AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW in a unit, --cap-add NET_ADMIN for a container)',
      { errno: 'EPERM' },
    );
  }
}

/**
 * The same for a host that is to carry packets itself; where the kernel carries them no TUN is needed.
 *
 * @throws {PodwireError} `UNSUPPORTED` (no TUN) or `PERMISSION` (no access to the device).
 */
export async function checkTun(path: string = '/dev/net/tun'): Promise<void> {
  try {
    await (await open(path, constants.O_RDWR)).close();
  } catch (error) {
    const errno = errnoOf(error);
    if (errno === 'ENOENT' || errno === 'ENODEV' || errno === 'ENXIO') {
      throw new PodwireError(
        'UNSUPPORTED',
        `${path} is missing: load the module (modprobe tun) or give it to the container (--device /dev/net/tun)`,
        { cause: error, errno },
      );
    }
    throw new PodwireError('PERMISSION', `cannot open ${path} for reading and writing: ${messageOf(error)}`, {
      cause: error,
      ...(errno === undefined ? {} : { errno }),
    });
  }
}

/** Outcome of {@link ensureSwitch}. */
export type SwitchOutcome = 'already' | 'set' | { readonly failed: string };

/**
 * Sets a kernel switch under `/proc/sys` unless it has the value already. Never throws: a read-only `/proc/sys` is
 * common in containers, and the caller knows how much the switch matters.
 */
export async function ensureSwitch(path: string, value: string): Promise<SwitchOutcome> {
  try {
    if ((await readFile(path, 'utf8')).trim() === value) return 'already';
    await writeFile(path, value);
    return 'set';
  } catch (error) {
    return { failed: messageOf(error) };
  }
}

/** The trimmed value of a kernel switch, or undefined when it cannot be read. */
export async function readSwitch(path: string): Promise<string | undefined> {
  try {
    return (await readFile(path, 'utf8')).trim();
  } catch {
    return undefined;
  }
}
