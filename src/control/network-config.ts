/**
 * The network config: one JSON object that every host of a network reads, `PATH/config` or `<prefix>/config`.
 *
 * Defaults, derivations and checks are flannel's (its `ParseConfig` and `CheckNetworkConfig`), and so are the
 * error texts, each followed by the value found and what to do about it.
 */
import { messageOf, PodwireError } from '../errors.js';
import { Address, Prefix } from '../net/prefix.js';
import { describeJson, fieldOf, JsonObject, shorten, type JsonField } from './json.js';

export interface BackendConfig {
  /** Lower case: `'udp'`, `'vxlan'`, … */
  readonly type: string;
  /** The `Backend` object, one entry a name however it is spelt; read it with {@link backendOption}. */
  readonly raw: Readonly<Record<string, unknown>>;
  /** The config has no `Backend` and got flannel's default `udp`: worth saying aloud, the documentation says vxlan. */
  readonly defaulted: boolean;
}

export interface NetworkConfig {
  readonly enableIPv4: boolean;
  readonly enableIPv6: boolean;
  readonly enableNFTables: boolean;
  /** The overlay's IPv4 network; present exactly when `enableIPv4`, as are min and max. */
  readonly network?: Prefix;
  /** Prefix length of one host's subnet; 0 without IPv4. */
  readonly subnetLen: number;
  /** First address of the first and of the last subnet that may be leased. */
  readonly subnetMin?: Address;
  readonly subnetMax?: Address;
  /** Present exactly when `enableIPv6`, as are min and max. */
  readonly ipv6Network?: Prefix;
  readonly ipv6SubnetLen: number;
  readonly ipv6SubnetMin?: Address;
  readonly ipv6SubnetMax?: Address;
  readonly backend: BackendConfig;
}

/** The enabled pod networks, IPv4 first. */
export function networksOf(network: NetworkConfig): Prefix[] {
  return [network.network, network.ipv6Network].filter((prefix) => prefix !== undefined);
}

/** All backend names flannel registers; which of them podwire runs: backends/table.ts. */
export const BACKEND_TYPES: readonly string[] = [
  'udp',
  'vxlan',
  'host-gw',
  'ipip',
  'ipsec',
  'wireguard',
  'alloc',
  'extension',
  'tencent-vpc',
];

/**
 * Reads and checks a network config.
 * @throws PodwireError INVALID_CONFIG, one line.
 */
export function parseNetworkConfig(text: string): NetworkConfig {
  const object = parseObject(text);
  const enableIPv4 = boolean(object, 'EnableIPv4') ?? true;
  const enableIPv6 = boolean(object, 'EnableIPv6') ?? false;
  const enableNFTables = boolean(object, 'EnableNFTables') ?? false;
  // Everything is decoded before anything is judged, so that a typo shows whichever families are on.
  const pool4 = decodePool(object, IPV4);
  const pool6 = decodePool(object, IPV6);
  const backend = decodeBackend(object);
  if (!enableIPv4 && !enableIPv6) {
    throw invalid('none defined stack: EnableIPv4 and EnableIPv6 are both false', 'enable one of them');
  }
  const ipv4 = enableIPv4 ? derivePool(pool4, IPV4) : undefined;
  const ipv6 = enableIPv6 ? derivePool(pool6, IPV6) : undefined;
  return {
    enableIPv4,
    enableIPv6,
    enableNFTables,
    subnetLen: ipv4?.subnetLen ?? 0,
    ...(ipv4 && { network: ipv4.network, subnetMin: ipv4.min, subnetMax: ipv4.max }),
    ipv6SubnetLen: ipv6?.subnetLen ?? 0,
    ...(ipv6 && { ipv6Network: ipv6.network, ipv6SubnetMin: ipv6.min, ipv6SubnetMax: ipv6.max }),
    backend,
  };
}

/** A config as text that {@link parseNetworkConfig} reads back as the same config: every derived value is spelt out. */
export function formatNetworkConfig(config: NetworkConfig): string {
  const pool = (pool: SubnetPool | undefined, prefix: string): Record<string, unknown> =>
    pool === undefined
      ? {}
      : {
          [`${prefix}Network`]: pool.network.toString(),
          [`${prefix}SubnetLen`]: pool.subnetLen,
          [`${prefix}SubnetMin`]: pool.min.toString(),
          [`${prefix}SubnetMax`]: pool.max.toString(),
        };
  return JSON.stringify({
    EnableIPv4: config.enableIPv4,
    EnableIPv6: config.enableIPv6,
    EnableNFTables: config.enableNFTables,
    ...pool(ipv4Pool(config), ''),
    ...pool(ipv6Pool(config), 'IPv6'),
    ...(config.backend.defaulted ? {} : { Backend: config.backend.raw }),
  });
}

/** One value of the `Backend` object by name without regard to case; undefined when absent or `null`. */
export function backendOption(config: Pick<NetworkConfig, 'backend'>, name: string): unknown {
  return fieldOf(config.backend.raw, name) ?? undefined;
}

/** The addresses of one family that leases are cut from, as derived. */
export interface SubnetPool {
  readonly network: Prefix;
  readonly subnetLen: number;
  readonly min: Address;
  readonly max: Address;
}

export function ipv4Pool(config: NetworkConfig): SubnetPool | undefined {
  const { network, subnetMin: min, subnetMax: max, subnetLen } = config;
  return network && min && max ? { network, min, max, subnetLen } : undefined;
}

export function ipv6Pool(config: NetworkConfig): SubnetPool | undefined {
  const { ipv6Network: network, ipv6SubnetMin: min, ipv6SubnetMax: max, ipv6SubnetLen: subnetLen } = config;
  return network && min && max ? { network, min, max, subnetLen } : undefined;
}

/** What the two families do differently; field names carry the prefix. */
interface FamilyRules {
  readonly family: 4 | 6;
  readonly bits: 32 | 128;
  readonly prefix: '' | 'IPv6';
  /** SubnetLen where the network has room for at least four of them. */
  readonly usualLen: number;
  /** As flannel names the network in "X is too small": it says `network` for IPv4. */
  readonly tooSmallName: string;
}

const IPV4: FamilyRules = { family: 4, bits: 32, prefix: '', usualLen: 24, tooSmallName: 'network' };
const IPV6: FamilyRules = { family: 6, bits: 128, prefix: 'IPv6', usualLen: 64, tooSmallName: 'IPv6Network' };

/** Fields as written; 0 and unspecified addresses mean "not given", as in flannel. */
interface DecodedPool {
  readonly network: Prefix | undefined;
  readonly subnetLen: number;
  readonly min: Address | undefined;
  readonly max: Address | undefined;
}

function decodePool(object: JsonObject, rules: FamilyRules): DecodedPool {
  const { prefix } = rules;
  return {
    network: cidr(object.last(`${prefix}Network`), `${prefix}Network`, rules),
    subnetLen: unsigned(object.lastValue(`${prefix}SubnetLen`), `${prefix}SubnetLen`),
    min: subnetAddress(object, `${prefix}SubnetMin`, rules),
    max: subnetAddress(object, `${prefix}SubnetMax`, rules),
  };
}

function derivePool(pool: DecodedPool, rules: FamilyRules): SubnetPool {
  const { prefix, bits } = rules;
  const { network } = pool;
  if (network === undefined || network.length === 0) {
    const example = rules.family === 4 ? '"Network":"10.42.0.0/16"' : '"IPv6Network":"fd00:42::/48"';
    throw invalid(
      `please define a correct ${prefix}Network parameter in the flannel config`,
      `it is ${network === undefined ? 'missing' : network.toString()}; add ${example}`,
    );
  }
  const subnetLen = deriveSubnetLen(pool.subnetLen, network, rules);
  const size = 1n << BigInt(bits - subnetLen);
  // The first subnet is skipped: its base address would be the network's own.
  const min = pool.min ?? network.address.offset(size);
  const max = pool.max ?? network.last.offset(1n - size);
  for (const [name, address] of [
    [`${prefix}SubnetMin`, min],
    [`${prefix}SubnetMax`, max],
  ] as const) {
    if (!network.contains(address)) {
      throw invalid(
        `${name} is not in the range of the ${prefix}Network`,
        `${address.toString()} is outside ${network.toString()}`,
      );
    }
  }
  for (const [name, address] of [
    [`${prefix}SubnetMin`, min],
    [`${prefix}SubnetMax`, max],
  ] as const) {
    const base = Prefix.of(address, subnetLen).address;
    if (!base.equals(address)) {
      throw invalid(
        `${name} is not on a SubnetLen boundary: ${address.toString()}`,
        `use ${base.toString()} with subnets of /${subnetLen}`,
      );
    }
  }
  return { network, subnetLen, min, max };
}

function deriveSubnetLen(given: number, network: Prefix, rules: FamilyRules): number {
  const longest = rules.bits - 2;
  if (given > 0) {
    if (given > longest) {
      throw invalid(`SubnetLen must be less than /${longest + 1}`, `${rules.prefix}SubnetLen is ${given}`);
    }
    if (given < network.length + 2) {
      throw invalid(
        'network must be able to accommodate at least four subnets',
        `${rules.prefix}SubnetLen is ${given}, ${network.toString()} needs ${network.length + 2} or more`,
      );
    }
    return given;
  }
  if (network.length > longest - 2) {
    throw invalid(
      `${rules.tooSmallName} is too small. Minimum useful network prefix is /${longest - 2}`,
      `${rules.prefix}Network is ${network.toString()}`,
    );
  }
  return network.length <= rules.usualLen - 2 ? rules.usualLen : network.length + 2;
}

function decodeBackend(object: JsonObject): BackendConfig {
  const field = object.last('Backend');
  if (field === undefined) return { type: 'udp', raw: {}, defaulted: true };
  if (field.value === null) throw unknownBackend('');
  if (typeof field.value !== 'object' || Array.isArray(field.value)) {
    throw invalid(
      'error decoding Backend property of config',
      `it is ${describeJson(field.value)}; write an object like {"Type":"udp"}`,
    );
  }
  const backend = new JsonObject(field.raw);
  const type = backend.lastValue('Type');
  if (type !== undefined && typeof type.value !== 'string') {
    throw invalid(
      'error decoding Backend property of config',
      `Type must be a string, it is ${describeJson(type.value)}`,
    );
  }
  const name = typeof type?.value === 'string' ? type.value.toLowerCase() : '';
  if (!BACKEND_TYPES.includes(name)) throw unknownBackend(name);
  return { type: name, raw: backend.toRecord(), defaulted: false };
}

function unknownBackend(name: string): PodwireError {
  return invalid(`unknown backend type: ${shorten(name)}`, `set Backend.Type to one of ${BACKEND_TYPES.join(', ')}`);
}

function parseObject(text: string): JsonObject {
  try {
    return new JsonObject(text);
  } catch (error) {
    throw invalid(
      text.trim() === '' ? 'the config is empty' : `not valid JSON: ${shorten(messageOf(error))}`,
      'write one object like {"Network":"10.42.0.0/16","Backend":{"Type":"udp"}}',
      error,
    );
  }
}

function boolean(object: JsonObject, name: string): boolean | undefined {
  const field = object.lastValue(name);
  if (field === undefined || typeof field.value === 'boolean') return field?.value as boolean | undefined;
  throw invalid(`${name} must be true or false`, `it is ${describeJson(field.value)}`);
}

/** Go reads a uint only from plain digits: neither 24.0 nor 2.4e1. */
function unsigned(field: JsonField | undefined, name: string): number {
  if (field === undefined) return 0;
  if (typeof field.value === 'number' && /^[0-9]{1,9}$/.test(field.raw)) return field.value;
  throw invalid(`${name} must be a whole number`, `it is ${describeJson(field.value)}`);
}

function cidr(field: JsonField | undefined, name: string, rules: FamilyRules): Prefix | undefined {
  if (field === undefined) return undefined;
  const parsed = typeof field.value === 'string' ? Prefix.tryParse(field.value) : undefined;
  if (parsed?.family === rules.family) return parsed;
  const example = rules.family === 4 ? '10.42.0.0/16' : 'fd00:42::/48';
  throw invalid(
    parsed ? `invalid IPv${rules.family} CIDR format` : 'invalid CIDR address',
    `${name} is ${describeJson(field.value)}; write it like "${example}"`,
  );
}

function subnetAddress(object: JsonObject, name: string, rules: FamilyRules): Address | undefined {
  // flannel's IPv6 fields are pointers, which null leaves unset; its IPv4 fields decode null and fail.
  const field = rules.family === 6 ? object.lastValue(name) : object.last(name);
  if (field === undefined) return undefined;
  const parsed = typeof field.value === 'string' ? Address.tryParse(field.value) : undefined;
  if (parsed?.family === rules.family) return parsed.isUnspecified ? undefined : parsed;
  const example = rules.family === 4 ? '10.42.16.0' : 'fd00:42:0:16::';
  throw invalid(
    'invalid IP address format',
    `${name} is ${describeJson(field.value)}; write an IPv${rules.family} address without length, like "${example}"`,
  );
}

function invalid(what: string, advice: string, cause?: unknown): PodwireError {
  return new PodwireError('INVALID_CONFIG', `invalid network config: ${what} (${advice})`, { cause });
}
