/** What the `wireguard` backend reads from the network config, and what hosts tell each other in their leases. */
import { PodwireError } from '../../errors.js';
import { isWireguardKey } from '../../host/wireguard.js';
import type { Address, Family } from '../../net/prefix.js';
import { describeJson, fieldOf } from '../json.js';
import type { Lease } from '../lease.js';
import { backendOption, type NetworkConfig } from '../network-config.js';

/**
 * `separate`: a device a family, each over its own. Else one device for both families, over IPv4, over IPv6, or with
 * `auto` over the one that is more likely to work for the peer.
 */
export type WireguardMode = 'separate' | 'auto' | 'ipv4' | 'ipv6';

const MODES: readonly WireguardMode[] = ['separate', 'auto', 'ipv4', 'ipv6'];

export interface WireguardConfig {
  readonly mode: WireguardMode;
  readonly listenPort: number;
  /** Of the IPv6 device in the mode `separate`. */
  readonly listenPortV6: number;
  /** Outer MTU in bytes, where the config names one. */
  readonly mtu: number | undefined;
  /** Base64. Secret: never to be printed. */
  readonly presharedKey: string | undefined;
  readonly keepaliveSeconds: number;
}

/** IPv6 header 40, UDP 8, message type 4, key index 4, counter 8, tag 16: flannel's figure for both families. */
export const WIREGUARD_OVERHEAD = 80;

/** @throws {PodwireError} `INVALID_CONFIG`. */
export function wireguardBackendConfig(network: NetworkConfig): WireguardConfig {
  const psk = backendOption(network, 'PSK');
  if (psk !== undefined && psk !== '' && !isWireguardKey(psk)) {
    // What was given may be a secret with a typing error: it is not repeated.
    throw new PodwireError(
      'INVALID_CONFIG',
      'invalid network config: Backend.PSK is no key; give 44 characters of base64 as wg genpsk prints them',
    );
  }
  const mtu = whole(network, 'MTU', 0, 65_535, 0);
  return {
    mode: modeOf(network),
    listenPort: whole(network, 'ListenPort', 1, 65_535, 51_820),
    listenPortV6: whole(network, 'ListenPortV6', 1, 65_535, 51_821),
    mtu: mtu === 0 ? undefined : mtu,
    presharedKey: typeof psk === 'string' && psk !== '' ? psk : undefined,
    keepaliveSeconds: whole(network, 'PersistentKeepaliveInterval', 0, 65_535, 0),
  };
}

export interface WireguardEndpoint {
  readonly publicKey: string;
  /** 0 when the lease names none: then it is ours. */
  readonly port: number;
}

/** What a lease says about its host's device for a family, or one line that says what is wrong. */
export function peerWireguard(lease: Lease, family: Family): WireguardEndpoint | string {
  const { backendData, backendV6Data } = lease.attributes;
  const name = family === 4 ? 'BackendData' : 'BackendV6Data';
  const data = family === 4 ? backendData : backendV6Data;
  if (data === undefined || data === null) return `it has no ${name}, so its public key is not known`;
  if (typeof data !== 'object' || Array.isArray(data)) return `its ${name} is ${describeJson(data)}, not an object`;
  const fields = data as Readonly<Record<string, unknown>>;
  const publicKey = fieldOf(fields, 'PublicKey');
  const port = fieldOf(fields, 'Port') ?? 0;
  if (!isWireguardKey(publicKey)) return `its PublicKey is ${describeJson(publicKey ?? null)}, which is no key`;
  if (typeof port !== 'number' || !Number.isInteger(port) || port < 0 || port > 65_535) {
    return `its Port is ${describeJson(port)}, which is no UDP port`;
  }
  return { publicKey, port };
}

/** Whether packets to it stay within a site: RFC 1918, or unique local. */
export function isPrivate(address: Address): boolean {
  const [a = 0, b = 0] = address.bytes;
  if (address.family === 6) return (a & 0xfe) === 0xfc;
  return a === 10 || (a === 172 && (b & 0xf0) === 16) || (a === 192 && b === 168);
}

function modeOf(network: NetworkConfig): WireguardMode {
  const value = backendOption(network, 'Mode') ?? 'separate';
  const found = MODES.find((mode) => mode === value);
  if (found !== undefined) return found;
  throw invalid('Mode', value, `no valid Mode configured, give one of ${MODES.join(', ')}`);
}

function whole(network: NetworkConfig, name: string, least: number, most: number, fallback: number): number {
  const value = backendOption(network, name) ?? fallback;
  if (typeof value === 'number' && Number.isInteger(value) && value >= least && value <= most) return value;
  throw invalid(name, value, `give a whole number from ${least} to ${most}`);
}

function invalid(name: string, value: unknown, advice: string): PodwireError {
  return new PodwireError(
    'INVALID_CONFIG',
    `invalid network config: Backend.${name} is ${describeJson(value)}; ${advice}`,
  );
}
