/**
 * `subnet.env`: flannel's file for the CNI plugin and for Docker (contract 7), exact bytes, written atomically; and
 * its reader, which finds the subnet that this host had before.
 */
import { readFile } from 'node:fs/promises';
import { errnoOf, messageOf, PodwireError } from '../errors.js';
import { Prefix } from '../net/prefix.js';
import { replaceFile, tryReplacing } from './replace-file.js';

export interface SubnetEnv {
  readonly network?: Prefix;
  readonly subnet?: Prefix;
  readonly ipv6Network?: Prefix;
  readonly ipv6Subnet?: Prefix;
  /** Overlay MTU in bytes. */
  readonly mtu: number;
  readonly ipMasq: boolean;
}

/** The subnets of an earlier run, masked to their network addresses. */
export interface PreviousSubnets {
  readonly subnet?: Prefix;
  readonly subnet6?: Prefix;
}

/** The file's bytes. A family's two lines are there when both its network and its subnet are. */
export function formatSubnetEnv(env: SubnetEnv): string {
  const lines: string[] = [];
  const family = (network: Prefix | undefined, subnet: Prefix | undefined, infix: string): void => {
    if (network === undefined || subnet === undefined) return;
    lines.push(`FLANNEL_${infix}NETWORK=${network.toString()}`);
    lines.push(`FLANNEL_${infix}SUBNET=${subnet.address.offset(1n).toString()}/${subnet.length}`);
  };
  family(env.network, env.subnet, '');
  family(env.ipv6Network, env.ipv6Subnet, 'IPV6_');
  lines.push(`FLANNEL_MTU=${env.mtu}`, `FLANNEL_IPMASQ=${env.ipMasq}`);
  return `${lines.join('\n')}\n`;
}

/**
 * Replaces `path` in one step (temporary file beside it, fsync, rename): a reader sees the old file or the new one.
 * Mode 0644 whatever the umask; a missing directory is made with 0755.
 *
 * @throws {PodwireError} `SYSTEM` with the errno; nothing is left beside the file.
 */
export async function writeSubnetEnv(path: string, env: SubnetEnv): Promise<void> {
  try {
    await replaceFile(path, formatSubnetEnv(env), 0o644);
  } catch (error) {
    throw fileError('write', path, error);
  }
}

/**
 * Finds out before anything is set up whether {@link writeSubnetEnv} can work: the directory is made if missing and a
 * file is created in it and removed.
 *
 * @throws {PodwireError} `SYSTEM`.
 */
export async function checkSubnetEnvWritable(path: string): Promise<void> {
  try {
    await tryReplacing(path);
  } catch (error) {
    throw fileError('write', path, error);
  }
}

/** Whether the file has exactly these bytes. */
export async function subnetEnvEquals(path: string, bytes: string): Promise<boolean> {
  return (await readFile(path, 'utf8').catch(() => undefined)) === bytes;
}

function fileError(verb: string, path: string, error: unknown): PodwireError {
  const errno = errnoOf(error);
  return new PodwireError('SYSTEM', `cannot ${verb} the subnet file ${path}: ${messageOf(error)}; see --subnet-file`, {
    cause: error,
    ...(errno === undefined ? {} : { errno }),
  });
}

/**
 * The subnets of the file's last writer, ours or flanneld's. As flanneld reads it: dotenv syntax, invalid prefixes
 * are skipped, and a list of more than one counts as none. No file: no subnets.
 *
 * @throws {PodwireError} `SYSTEM` when the file is there but cannot be read.
 */
export async function readPreviousSubnets(path: string): Promise<PreviousSubnets> {
  let text: string;
  try {
    text = await readFile(path, 'utf8');
  } catch (error) {
    if (errnoOf(error) === 'ENOENT' || errnoOf(error) === 'ENOTDIR') return {};
    throw fileError('read', path, error);
  }
  const values = parseDotenv(text);
  const subnet = singlePrefix(values.get('FLANNEL_SUBNET'), 4);
  const subnet6 = singlePrefix(values.get('FLANNEL_IPV6_SUBNET'), 6);
  return { ...(subnet === undefined ? {} : { subnet }), ...(subnet6 === undefined ? {} : { subnet6 }) };
}

function singlePrefix(list: string | undefined, family: 4 | 6): Prefix | undefined {
  const prefixes = (list ?? '')
    .split(',')
    .map((item) => Prefix.tryParse(item.trim()))
    .filter((prefix) => prefix?.family === family);
  return prefixes.length === 1 ? prefixes[0] : undefined;
}

/**
 * Dotenv syntax: `KEY=value` or `KEY: value`, an optional `export `, single or double quotes, `#` comments (inside a
 * line only after white space). Lines that are none of this are skipped; the last of two equal keys wins.
 */
export function parseDotenv(text: string): Map<string, string> {
  const values = new Map<string, string>();
  for (const line of text.split(/\r?\n/)) {
    const match = /^\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_.]*)\s*[=:]\s*(.*)$/.exec(line);
    if (match === null) continue;
    const [, key = '', rest = ''] = match;
    const quoted = /^(["'])(.*?)\1\s*(?:#.*)?$/.exec(rest);
    values.set(key, quoted?.[2] ?? rest.replace(/(^|\s)#.*$/, '').trim());
  }
  return values;
}
