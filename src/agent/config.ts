/**
 * The agent's configuration: flag values from the command line and the environment, read and checked.
 *
 * A value that cannot be read is `INVALID_ARGUMENT` or `INVALID_ADDRESS` (a usage error, exit 2); a flag of a part
 * that this version does not have is `UNSUPPORTED` (exit 1), because the operator used it rightly.
 */
import { resolve } from 'node:path';
import { PodwireError } from '../errors.js';
import type { InterfaceChoice } from '../host/select-interface.js';
import type { DataplaneOptions } from '../index.js';
import { Address } from '../net/prefix.js';
import { defaultControlSocket } from './control-path.js';
import { environmentName, type Flag, flagNamed, FLAGS } from './flags.js';
import type { LogFormat, LogLevel } from './log.js';

export interface AgentConfig {
  readonly store: { readonly kind: 'directory'; readonly path: string };
  readonly interface: InterfaceChoice;
  readonly subnetFile: string;
  /** Directory of the lease table and of what backends keep. */
  readonly stateDirectory: string;
  readonly controlSocket: string;
  readonly ipMasq: boolean;
  readonly leaseTtlMs: number;
  /** Absent: as the lease's length allows (see joinOverlay). */
  readonly renewMarginMs?: number;
  readonly releaseOnExit: boolean;
  readonly txQueueLength?: number;
  readonly dataplane: Pick<
    DataplaneOptions,
    'device' | 'workers' | 'sourceCheck' | 'sourcePort' | 'offload' | 'spin' | 'pathMtu'
  >;
  readonly logLevel: LogLevel;
  readonly logFormat: LogFormat;
  /** Lines for the operator that are no errors: flags without effect in this version. */
  readonly warnings: readonly string[];
}

/** Flag values as commander gives them: text, or a list for a repeatable flag. */
export type FlagValues = Readonly<Record<string, string | readonly string[] | undefined>>;

const LONGEST_TTL_MS = 366 * 24 * 3_600_000;
const LONGEST_DEVICE = 15;
/** sun_path of a unix socket address: 108 bytes with the final zero (unix(7)). */
const LONGEST_SOCKET_PATH = 107;

/**
 * @param given values from the command line, keyed by flag name.
 * @param environment `FLANNELD_…` and `PODWIRE_…` are read; the command line wins. A list takes one value from it.
 * @throws {PodwireError} see above.
 */
export function readAgentConfig(given: FlagValues, environment: NodeJS.ProcessEnv): AgentConfig {
  const read = new FlagReader(given, environment);
  const warnings: string[] = [];
  refuseAbsentParts(read, warnings);
  const store = readStore(read);
  const subnetFile = resolve(read.text('subnet-file'));
  const socketText = read.optional('control-socket');
  const controlSocket = socketText === undefined ? defaultControlSocket(subnetFile) : resolve(socketText);
  if (Buffer.byteLength(controlSocket) > LONGEST_SOCKET_PATH) {
    throw new PodwireError(
      'INVALID_ARGUMENT',
      `the control socket path ${controlSocket} is longer than ${LONGEST_SOCKET_PATH} bytes: give a shorter one with --control-socket`,
    );
  }
  const ipMasq = read.bool('ip-masq');
  const firewall = FLAGS.filter(
    ({ group, name, kind }) => group === 'firewall' && read.isSet(name) && (kind !== 'bool' || read.bool(name)),
  );
  if (firewall.length > 0) {
    const names = firewall.map((flag) => `--${flag.name}`).join(', ');
    warnings.push(
      `${names}: this version installs no firewall rules${ipMasq ? '; FLANNEL_IPMASQ=true is written to the subnet file, masquerading is up to the CNI plugin or to you' : ''}`,
    );
  }
  const leaseTtlMs = parseDuration(read.text('lease-ttl'));
  const margin = readMargin(read, leaseTtlMs);
  const queue = read.optional('tx-queue-length');
  return {
    store,
    interface: readInterface(read),
    subnetFile,
    stateDirectory: resolve(read.text('state-dir')),
    controlSocket,
    ipMasq,
    leaseTtlMs,
    ...(margin === undefined ? {} : { renewMarginMs: margin }),
    releaseOnExit: read.bool('release-on-exit'),
    ...(queue === undefined ? {} : { txQueueLength: parseInteger('--tx-queue-length', queue, 1, 1_000_000) }),
    dataplane: readDataplane(read),
    logLevel: read.choice('log-level', ['debug', 'info', 'warn', 'error']),
    logFormat: read.choice('log-format', ['auto', 'json', 'pretty']),
    warnings,
  };
}

/** Looks a flag up: command line, then environment, then default. */
class FlagReader {
  readonly #given: FlagValues;
  readonly #environment: NodeJS.ProcessEnv;

  constructor(given: FlagValues, environment: NodeJS.ProcessEnv) {
    this.#given = given;
    this.#environment = environment;
  }

  /** The flag as the operator wrote it, for messages. */
  origin(name: string): string {
    return this.fromCommandLine(name) ? `--${name}` : environmentName(this.#flag(name));
  }

  fromCommandLine(name: string): boolean {
    return this.#given[name] !== undefined;
  }

  isSet(name: string): boolean {
    return this.list(name).length > 0;
  }

  list(name: string): readonly string[] {
    const value = this.#given[name];
    if (value !== undefined) return typeof value === 'string' ? [value] : value;
    const fromEnvironment = this.#environment[environmentName(this.#flag(name))];
    return fromEnvironment === undefined || fromEnvironment === '' ? [] : [fromEnvironment];
  }

  /** The last value given, or undefined; empty text counts as not given, as in flanneld. */
  optional(name: string): string | undefined {
    const value = this.list(name).at(-1);
    return value === undefined || value === '' ? undefined : value;
  }

  text(name: string): string {
    return this.optional(name) ?? this.#flag(name).default ?? '';
  }

  bool(name: string): boolean {
    const text = this.text(name);
    if (/^(1|t|T|true|TRUE|True)$/.test(text)) return true;
    if (/^(0|f|F|false|FALSE|False)$/.test(text)) return false;
    throw new PodwireError('INVALID_ARGUMENT', `${this.origin(name)}=${text} is neither true nor false`);
  }

  choice<T extends string>(name: string, choices: readonly T[]): T {
    const text = this.text(name);
    const found = choices.find((choice) => choice === text);
    if (found !== undefined) return found;
    throw new PodwireError(
      'INVALID_ARGUMENT',
      `${this.origin(name)} ${JSON.stringify(text)} is not one of ${choices.join(', ')}`,
    );
  }

  #flag(name: string): Flag {
    const flag = flagNamed(name);
    if (flag === undefined) throw new Error(`no flag is named ${name}`);
    return flag;
  }
}

/** flanneld's flags of parts that are not there yet must not be silently without effect. */
function refuseAbsentParts(read: FlagReader, warnings: string[]): void {
  for (const flag of FLAGS) {
    if (flag.group !== 'absent' || !read.isSet(flag.name)) continue;
    const unchanged = flag.kind === 'bool' ? !read.bool(flag.name) : read.text(flag.name) === flag.default;
    if (unchanged) continue;
    const isStore = flag.part?.endsWith('store') === true;
    if (isStore && !read.fromCommandLine(flag.name) && read.isSet('store')) {
      warnings.push(`${read.origin(flag.name)} has no effect: the leases are in --store ${read.text('store')}`);
      continue;
    }
    throw new PodwireError(
      'UNSUPPORTED',
      isStore
        ? `${read.origin(flag.name)} belongs to ${flag.part}: this version has the directory store only (--store dir:PATH)`
        : `${read.origin(flag.name)} asks for ${flag.part}, which this version does not have: leave it out`,
    );
  }
}

function readStore(read: FlagReader): AgentConfig['store'] {
  const text = read.optional('store');
  if (text === undefined) {
    throw new PodwireError(
      'UNSUPPORTED',
      'without --store the agent means etcd, as flanneld does, and this version has the directory store only: give --store dir:PATH',
    );
  }
  const scheme = /^([a-z0-9]+):/.exec(text)?.[1];
  if (scheme !== 'dir') {
    throw new PodwireError(
      'INVALID_ARGUMENT',
      `${read.origin('store')} ${JSON.stringify(text)}: this version has the directory store only, written dir:PATH`,
    );
  }
  const path = text.slice('dir:'.length);
  if (path === '' || path.includes('\0')) {
    throw new PodwireError(
      'INVALID_ARGUMENT',
      `${read.origin('store')} ${JSON.stringify(text)} names no directory: write dir:/path/to/store`,
    );
  }
  return { kind: 'directory', path: resolve(path) };
}

function readInterface(read: FlagReader): InterfaceChoice {
  const address = (name: string, family?: 4 | 6): string | undefined => {
    const text = read.optional(name);
    if (text === undefined) return undefined;
    const parsed = Address.tryParse(text);
    if (parsed === undefined || (family !== undefined && parsed.family !== family)) {
      throw new PodwireError(
        'INVALID_ADDRESS',
        `${read.origin(name)} ${JSON.stringify(text)} is not an ${family === undefined ? 'IP' : `IPv${family}`} address`,
      );
    }
    return text;
  };
  const canReach = address('iface-can-reach');
  const publicIp = address('public-ip', 4);
  const publicIpv6 = address('public-ipv6', 6);
  return {
    iface: read.list('iface').filter((text) => text !== ''),
    ifaceRegex: read.list('iface-regex').filter((text) => text !== ''),
    ...(canReach === undefined ? {} : { ifaceCanReach: canReach }),
    ...(publicIp === undefined ? {} : { publicIp }),
    ...(publicIpv6 === undefined ? {} : { publicIpv6 }),
  };
}

function readDataplane(read: FlagReader): AgentConfig['dataplane'] {
  const device = read.text('device');
  // dev_valid_name() of the kernel, and one %d at most.
  if (
    !/^[^\s/%:]+(%d)?[^\s/%:]*$/.test(device) ||
    Buffer.byteLength(device) > LONGEST_DEVICE ||
    /^\.\.?$/.test(device)
  ) {
    throw new PodwireError(
      'INVALID_ARGUMENT',
      `${read.origin('device')} ${JSON.stringify(device)} is no device name: at most ${LONGEST_DEVICE} bytes without white space, "/" and ":", with at most one %d for a number`,
    );
  }
  const workers = read.text('workers');
  return {
    device,
    workers: workers === 'auto' ? 'auto' : parseInteger(read.origin('workers'), workers, 1, 32, ' or auto'),
    sourceCheck: read.choice('source-check', ['off', 'lease', 'strict']),
    sourcePort: read.choice('source-port', ['flow', 'fixed']),
    offload: {
      tun: read.choice('tun-offload', ['auto', 'uso', 'tso', 'csum', 'none']),
      udp: read.choice('udp-offload', ['auto', 'gso', 'mmsg', 'single']),
    },
    spin: read.choice('spin', ['adaptive', 'off', 'always']),
    ...(read.bool('path-mtu-probes') ? {} : { pathMtu: false as const }),
  };
}

function readMargin(read: FlagReader, leaseTtlMs: number): number | undefined {
  const text = read.optional('subnet-lease-renew-margin');
  if (text === undefined) return undefined;
  if (!/^\d+$/.test(text) || Number(text) < 1 || Number(text) > 1439) {
    throw new PodwireError(
      'INVALID_ARGUMENT',
      `Invalid subnet-lease-renew-margin option, out of acceptable range: ${JSON.stringify(text)} is not 1 to 1439 minutes`,
    );
  }
  const marginMs = Number(text) * 60_000;
  if (marginMs >= leaseTtlMs) {
    throw new PodwireError(
      'INVALID_ARGUMENT',
      `${read.origin('subnet-lease-renew-margin')} ${text} (minutes) is not shorter than --lease-ttl ${read.text('lease-ttl')}: the lease would be renewed without end`,
    );
  }
  return marginMs;
}

function parseInteger(name: string, text: string, least: number, most: number, also = ''): number {
  const value = /^\d{1,9}$/.test(text) ? Number(text) : Number.NaN;
  if (!(value >= least && value <= most)) {
    throw new PodwireError(
      'INVALID_ARGUMENT',
      `${name} ${JSON.stringify(text)} is not a number from ${least} to ${most}${also}`,
    );
  }
  return value;
}

const UNIT_MS: Readonly<Record<string, number>> = { ms: 1, s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 };

/** Go's duration syntax without fractions, days added: `1h30m`, `45s`. @throws {PodwireError} INVALID_ARGUMENT. */
function parseDuration(text: string): number {
  let ms = 0;
  if (/^(\d{1,9}(ms|s|m|h|d))+$/.test(text)) {
    for (const [, amount, unit = ''] of text.matchAll(/(\d+)(ms|s|m|h|d)/g))
      ms += Number(amount) * (UNIT_MS[unit] ?? 0);
  }
  if (ms < 1_000 || ms > LONGEST_TTL_MS) {
    throw new PodwireError(
      'INVALID_ARGUMENT',
      `--lease-ttl ${JSON.stringify(text)} is no duration from 1s to 366d: write it like 30s, 90m, 24h or 1h30m`,
    );
  }
  return ms;
}
