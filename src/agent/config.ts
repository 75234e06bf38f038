/**
 * The agent's configuration: flag values from the command line and the environment, read and checked.
 *
 * A value that cannot be read is `INVALID_ARGUMENT` or `INVALID_ADDRESS` (a usage error, exit 2); a flag of a part
 * that this version does not have is `UNSUPPORTED` (exit 1), because the operator used it rightly.
 */
import { readFile } from 'node:fs/promises';
import { resolve } from 'node:path';
import { errnoOf, messageOf, PodwireError } from '../errors.js';
import { type InterfaceChoice, parseInterfacePattern } from '../host/select-interface.js';
import { parseDotenv } from '../host/subnet-env.js';
import type { DataplaneOptions, FirewallOptions } from '../index.js';
import { Address } from '../net/prefix.js';
import { defaultControlSocket } from './control-path.js';
import { FlagReader, type FlagValues } from './flag-reader.js';
import { FLAGS, readInt } from './flags.js';
import type { LogFormat, LogLevel } from './log.js';
import { readStore, type StoreConfig } from './store-config.js';

export type { FlagValues } from './flag-reader.js';

export interface AgentConfig {
  readonly store: StoreConfig;
  readonly interface: InterfaceChoice;
  readonly subnetFile: string;
  /** Directory of the lease table and of what backends keep. */
  readonly stateDirectory: string;
  readonly controlSocket: string;
  readonly ipMasq: boolean;
  readonly firewall: FirewallOptions;
  readonly leaseTtlMs: number;
  /** Absent: as the lease's length allows (see joinOverlay). */
  readonly renewMarginMs?: number;
  readonly releaseOnExit: boolean;
  readonly txQueueLength?: number;
  /** Absent: as the network config says. */
  readonly vxlanMode?: 'auto' | 'user' | 'kernel';
  /** UDP port of this host's tunnel, where it is not the network's. */
  readonly port?: number;
  /** Further outer addresses of other hosts, by the address in their leases. */
  readonly peerSources: Readonly<Record<string, readonly string[]>>;
  readonly dataplane: Pick<
    DataplaneOptions,
    'device' | 'workers' | 'sourceCheck' | 'sourcePort' | 'offload' | 'spin' | 'pathMtu' | 'peerProbes'
  >;
  /** Where health checks and metrics are served; absent: nowhere. */
  readonly health?: { readonly host: string; readonly port: number };
  /** Hosts with metrics of their own. */
  readonly metricsPeers: number;
  readonly logLevel: LogLevel;
  readonly logFormat: LogFormat;
  /** Every flag's value; see {@link FlagReader.settings}. */
  readonly settings: ReadonlyMap<string, string>;
  /** Lines for the operator that are no errors: flags and variables without effect. */
  readonly warnings: readonly string[];
}

const LONGEST_TTL_MS = 366 * 24 * 3_600_000;
const LONGEST_DEVICE = 15;
/** sun_path of a unix socket address: 108 bytes with the final zero (unix(7)). */
const LONGEST_SOCKET_PATH = 107;

/**
 * @param given values from the command line, keyed by flag name.
 * @param environment `FLANNELD_…` and `PODWIRE_…` are read, see {@link FlagReader}.
 * @throws {PodwireError} see above.
 */
export function readAgentConfig(given: FlagValues, environment: NodeJS.ProcessEnv): AgentConfig {
  const read = new FlagReader(given, environment);
  const warnings = [...read.warnings];
  refuseAbsentParts(read, warnings);
  const store = readStore(read, warnings);
  const subnetFile = resolve(read.text('subnet-file'));
  const socketText = read.optional('control-socket');
  const controlSocket = socketText === undefined ? defaultControlSocket(subnetFile) : resolve(socketText);
  if (Buffer.byteLength(controlSocket) > LONGEST_SOCKET_PATH) {
    throw new PodwireError(
      'INVALID_ARGUMENT',
      `the control socket path ${controlSocket} is longer than ${LONGEST_SOCKET_PATH} bytes: give a shorter one with --control-socket`,
    );
  }
  const leaseTtlMs = parseDuration(read.text('lease-ttl'));
  const margin = readMargin(read, leaseTtlMs);
  const health = readHealth(read);
  const firewall = readFirewall(read);
  const ipMasq = read.bool('ip-masq');
  if (ipMasq && firewall.manager === 'none') {
    warnings.push(
      `${read.origin('ip-masq')} with ${read.origin('firewall')} none: FLANNEL_IPMASQ=true is written to the subnet file, masquerading is up to you`,
    );
  }
  return {
    store,
    interface: readInterface(read),
    subnetFile,
    stateDirectory: resolve(read.text('state-dir')),
    controlSocket,
    ipMasq,
    firewall,
    leaseTtlMs,
    ...(margin === undefined ? {} : { renewMarginMs: margin }),
    releaseOnExit: read.bool('release-on-exit'),
    ...(read.isSet('port') ? { port: read.int('port', 1, 65_535) } : {}),
    ...(read.isSet('vxlan-mode') ? { vxlanMode: read.choice('vxlan-mode', ['auto', 'user', 'kernel']) } : {}),
    ...(read.isSet('tx-queue-length') ? { txQueueLength: read.int('tx-queue-length', 1, 1_000_000) } : {}),
    peerSources: readPeerSourceFlags(read),
    dataplane: readDataplane(read),
    ...(health === undefined ? {} : { health }),
    metricsPeers: read.int('metrics-peers', 0, 10_000),
    settings: read.settings(),
    logLevel: readLogLevel(read),
    logFormat: read.choice('log-format', ['auto', 'json', 'pretty']),
    warnings,
  };
}

/**
 * {@link readAgentConfig} with the variables of `--environment-file` behind those of the environment. A dash before
 * its path means that it may be missing, as in a systemd unit.
 *
 * @throws {PodwireError} also `SYSTEM` when that file cannot be read.
 */
export async function loadAgentConfig(given: FlagValues, environment: NodeJS.ProcessEnv): Promise<AgentConfig> {
  const named = new FlagReader(given, environment).optional('environment-file');
  if (named === undefined) return readAgentConfig(given, environment);
  const mayMiss = named.startsWith('-');
  const path = mayMiss ? named.slice(1) : named;
  let text: string;
  try {
    text = await readFile(path, 'utf8');
  } catch (error) {
    if (mayMiss && errnoOf(error) === 'ENOENT') return readAgentConfig(given, environment);
    throw new PodwireError('SYSTEM', `cannot read --environment-file ${path}: ${messageOf(error)}`, { cause: error });
  }
  const set = Object.entries(environment).filter(([, value]) => value !== '');
  return readAgentConfig(given, { ...Object.fromEntries(parseDotenv(text)), ...Object.fromEntries(set) });
}

/** flanneld's flags of parts that are not there yet must not be silently without effect. */
function refuseAbsentParts(read: FlagReader, warnings: string[]): void {
  for (const { group, name, part = '' } of FLAGS) {
    if (!read.isChanged(name)) continue;
    if (group === 'ignored' && name !== 'set-node-network-unavailable') {
      warnings.push(`${read.origin(name)} has no effect: see --log-level`);
    }
    if (group !== 'absent') continue;
    const isStore = part.endsWith('store');
    if (isStore && !read.fromCommandLine(name) && read.isSet('store')) {
      warnings.push(`${read.origin(name)} has no effect: the leases are in --store ${read.text('store')}`);
      continue;
    }
    throw new PodwireError(
      'UNSUPPORTED',
      isStore
        ? `${read.origin(name)} belongs to ${part}, which this version does not have: use etcd (--etcd-endpoints) or a directory (--store dir:PATH)`
        : `${read.origin(name)} asks for ${part}, which this version does not have: leave it out`,
    );
  }
}

/** `-v` counts as in klog, where details begin at 2; what says the level itself goes first. */
function readLogLevel(read: FlagReader): LogLevel {
  const verbosity = read.int('v', -100, 100);
  if (!read.isSet('log-level') && verbosity >= 2) return 'debug';
  return read.choice('log-level', ['debug', 'info', 'warn', 'error']);
}

function readHealth(read: FlagReader): AgentConfig['health'] {
  const port = read.int('healthz-port', 0, 65_535);
  const host = read.text('healthz-ip');
  if (!/^(?:[0-9A-Za-z._-]+|[0-9A-Fa-f:.]+(?:%[^\s%]+)?)$/.test(host)) {
    throw read.refusal('healthz-ip', 'is neither an IP address nor a host name');
  }
  return port === 0 ? undefined : { host, port };
}

function readInterface(read: FlagReader): InterfaceChoice {
  const canReach = read.address('iface-can-reach');
  for (const pattern of read.list('iface-regex')) parseInterfacePattern(pattern);
  const publicIp = read.address('public-ip', 4);
  const publicIpv6 = read.address('public-ipv6', 6);
  return {
    iface: read.list('iface').filter((text) => text !== ''),
    ifaceRegex: read.list('iface-regex').filter((text) => text !== ''),
    ...(canReach === undefined ? {} : { ifaceCanReach: canReach }),
    ...(publicIp === undefined ? {} : { publicIp }),
    ...(publicIpv6 === undefined ? {} : { publicIpv6 }),
  };
}

function readFirewall(read: FlagReader): FirewallOptions {
  return {
    manager: read.choice('firewall', ['auto', 'nft', 'iptables', 'none']),
    forward: read.bool('iptables-forward-rules'),
    randomFully: !read.bool('ip-masq-fully-random-disable'),
    blackhole: read.bool('ip-blackhole-route'),
    resyncMs: read.int('iptables-resync', 1, 86_400) * 1_000,
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
  return {
    device,
    workers: read.text('workers') === 'auto' ? 'auto' : read.int('workers', 1, 32, ' or auto'),
    sourceCheck: read.choice('source-check', ['off', 'lease', 'strict']),
    sourcePort: read.choice('source-port', ['flow', 'fixed']),
    offload: {
      tun: read.choice('tun-offload', ['auto', 'uso', 'tso', 'csum', 'none']),
      udp: read.choice('udp-offload', ['auto', 'gso', 'mmsg', 'single']),
    },
    spin: read.choice('spin', ['adaptive', 'off', 'always']),
    peerProbes: read.bool('peer-probes'),
    ...(read.bool('path-mtu-probes') ? {} : { pathMtu: false as const }),
  };
}

/** `PUBLICIP=ADDRESS`, each time for one more address. @throws {PodwireError} INVALID_ADDRESS. */
function readPeerSourceFlags(read: FlagReader): Record<string, string[]> {
  const sources: Record<string, string[]> = {};
  // A variable has one value: several stand with commas.
  for (const text of read.list('peer-source').flatMap((value) => value.split(','))) {
    if (text === '') continue;
    const [peer, source, ...more] = text.split('=').map((part) => Address.tryParse(part.trim()));
    if (peer === undefined || source === undefined || more.length > 0 || peer.family !== source.family) {
      throw new PodwireError(
        'INVALID_ADDRESS',
        `${read.origin('peer-source')} ${JSON.stringify(text)} is not PUBLICIP=ADDRESS, two addresses of one family: the one in the host's lease, and another that it sends from`,
      );
    }
    (sources[peer.toString()] ??= []).push(source.toString());
  }
  return sources;
}

function readMargin(read: FlagReader, leaseTtlMs: number): number | undefined {
  const text = read.optional('subnet-lease-renew-margin');
  if (text === undefined) return undefined;
  const minutes = readInt(text);
  if (minutes === undefined || minutes < 1 || minutes > 1439) {
    throw new PodwireError(
      'INVALID_ARGUMENT',
      `Invalid subnet-lease-renew-margin option, out of acceptable range: ${JSON.stringify(text)} is not 1 to 1439 minutes`,
    );
  }
  const marginMs = minutes * 60_000;
  if (marginMs >= leaseTtlMs) {
    throw new PodwireError(
      'INVALID_ARGUMENT',
      `${read.origin('subnet-lease-renew-margin')} ${text} (minutes) is not shorter than --lease-ttl ${read.text('lease-ttl')}: the lease would be renewed without end`,
    );
  }
  return marginMs;
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
