/** What the `vxlan` backend reads from the network config, and what hosts tell each other in their leases. */
import { PodwireError } from '../../errors.js';
import { MacAddress, type Prefix } from '../../net/prefix.js';
import { describeJson, fieldOf } from '../json.js';
import type { Lease } from '../lease.js';
import { backendOption, type NetworkConfig } from '../network-config.js';

/** Who carries the packets: the kernel's vxlan device, or podwire's own tunnel end point. */
export type VxlanMode = 'user' | 'kernel' | 'auto';

export const VXLAN_MODES: readonly VxlanMode[] = ['auto', 'user', 'kernel'];

export interface VxlanConfig {
  readonly vni: number;
  /** UDP port of every host. */
  readonly port: number;
  /** Outer MTU in bytes, where the config names one. */
  readonly mtu: number | undefined;
  readonly gbp: boolean;
  readonly learning: boolean;
  readonly directRouting: boolean;
  readonly mode: VxlanMode;
}

/** The Linux kernel's port for vxlan, flannel's default; IANA's 4789 came later. */
export const DEFAULT_VXLAN_PORT = 8472;
const DEFAULT_VNI = 1;
const LARGEST_VNI = 0xff_ffff;
const SMALLEST_MTU = 576;

/**
 * @param mode overrules the config's `Mode`; flanneld knows no such field and ignores it.
 * @throws {PodwireError} `INVALID_CONFIG`.
 */
export function vxlanConfig(network: NetworkConfig, mode?: VxlanMode): VxlanConfig {
  const port = whole(network, 'Port', 0, 65_535) ?? 0;
  const mtu = whole(network, 'MTU', 0, 65_535);
  if (mtu !== undefined && mtu !== 0 && mtu < SMALLEST_MTU) {
    throw invalid('MTU', mtu, `give the underlay's MTU in bytes, ${SMALLEST_MTU} or more, or leave it out`);
  }
  return {
    vni: whole(network, 'VNI', 0, LARGEST_VNI) ?? DEFAULT_VNI,
    // flannel decodes 0 as "not given".
    port: port === 0 ? DEFAULT_VXLAN_PORT : port,
    mtu: mtu === 0 ? undefined : mtu,
    gbp: flag(network, 'GBP'),
    learning: flag(network, 'Learning'),
    directRouting: flag(network, 'DirectRouting'),
    mode: mode ?? modeOf(network),
  };
}

/** The object for the lease, in flannel's key order (its readers of annotations want the MAC last). */
export function vtepData(vni: number, mac: MacAddress): { readonly VNI: number; readonly VtepMAC: string } {
  return { VNI: vni, VtepMAC: mac.toString() };
}

/**
 * The tunnel end point that a lease names for one of its prefixes: its MAC, or one line that says what is wrong.
 * Field names are read without regard to case, a lease without VNI passes.
 */
export function peerVtep(lease: Lease, prefix: Prefix, vni: number): MacAddress | string {
  const { backendData, backendV6Data } = lease.attributes;
  const name = prefix.family === 4 ? 'BackendData' : 'BackendV6Data';
  const data = prefix.family === 4 ? backendData : backendV6Data;
  if (data === undefined || data === null) return `it has no ${name}, so its VtepMAC is not known`;
  if (typeof data !== 'object' || Array.isArray(data)) return `its ${name} is ${describeJson(data)}, not an object`;
  const fields = data as Readonly<Record<string, unknown>>;
  const theirs = fieldOf(fields, 'VNI');
  if (theirs !== undefined && theirs !== vni) return `its VNI is ${describeValue(theirs)}, ours is ${vni}`;
  const text = fieldOf(fields, 'VtepMAC');
  if (typeof text !== 'string') return `its ${name} names no VtepMAC`;
  let mac: MacAddress;
  try {
    mac = MacAddress.parse(text);
  } catch {
    return `its VtepMAC is ${describeJson(text)}, which is no hardware address`;
  }
  const isGroup = (mac.bytes[0]! & 1) === 1;
  const isZero = mac.bytes.every((byte) => byte === 0);
  return isGroup || isZero ? `its VtepMAC ${mac.toString()} is no host's address` : mac;
}

function describeValue(value: unknown): string {
  return typeof value === 'number' ? String(value) : describeJson(value);
}

function whole(network: NetworkConfig, name: string, least: number, most: number): number | undefined {
  const value = backendOption(network, name);
  if (value === undefined) return undefined;
  if (typeof value === 'number' && Number.isInteger(value) && value >= least && value <= most) return value;
  throw invalid(name, value, `give a whole number from ${least} to ${most}`);
}

function flag(network: NetworkConfig, name: string): boolean {
  const value = backendOption(network, name) ?? false;
  if (typeof value === 'boolean') return value;
  throw invalid(name, value, 'give true or false');
}

function modeOf(network: NetworkConfig): VxlanMode {
  const value = backendOption(network, 'Mode') ?? 'auto';
  const found = VXLAN_MODES.find((mode) => typeof value === 'string' && value.toLowerCase() === mode);
  if (found !== undefined) return found;
  throw invalid('Mode', value, `give one of ${VXLAN_MODES.join(', ')}`);
}

function invalid(name: string, value: unknown, advice: string): PodwireError {
  return new PodwireError(
    'INVALID_CONFIG',
    `invalid network config: Backend.${name} is ${describeJson(value)}; ${advice}`,
  );
}
