/**
 * The stored value of a lease: flannel's `LeaseAttrs` as JSON, byte for byte as Go writes it (key order
 * PublicIP, PublicIPv6, BackendType, BackendData, BackendV6Data; the last three only when they say something):
 *
 * ```
 * {"PublicIP":"1.2.3.4","PublicIPv6":null}
 * {"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}
 * ```
 * podwire appends `"Expiration":"<RFC 3339, UTC>"` and `"Owner":"<name>"`, which flannel's readers skip as unknown
 * fields, and behind them what it found in a lease that it takes over and does not know itself.
 */
import { messageOf, PodwireError } from '../errors.js';
import { Address } from '../net/prefix.js';
import { describeJson, goJson, JsonObject, shorten, type JsonField } from './json.js';
import type { LeaseAttributes } from './lease.js';

/** Everything one stored value says. */
export interface StoredLease {
  readonly attributes: LeaseAttributes;
  readonly expiresAt?: Date;
  readonly owner?: string;
  /** Fields that podwire does not know, in the order written, the last one of a name. */
  readonly unknown?: readonly UnknownField[];
}

export interface UnknownField {
  readonly key: string;
  /** The value as written. */
  readonly raw: string;
}

/** No lease comes near it; a larger value is somebody else's file. */
export const MAX_VALUE_BYTES = 64 * 1024;

const MAX_OWNER_CHARS = 256;
/** Unknown fields beyond this are dropped when a lease is written again. */
const MAX_UNKNOWN_CHARS = 4096;
const KNOWN = new Set([
  'publicip',
  'publicipv6',
  'backendtype',
  'backenddata',
  'backendv6data',
  'port',
  'expiration',
  'owner',
]);
const RFC3339 = /^(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.\d{1,9})?(?:Z|[+-]\d\d:\d\d)$/;

/** The value to store; without `extra` exactly what flanneld writes. */
export function encodeLease(
  attributes: LeaseAttributes,
  extra: {
    readonly expiresAt?: Date | undefined;
    readonly owner?: string | undefined;
    readonly unknown?: readonly UnknownField[] | undefined;
  } = {},
): string {
  const fields: [string, unknown][] = [
    ['PublicIP', attributes.publicIp.toString()],
    ['PublicIPv6', attributes.publicIpv6?.toString() ?? null],
  ];
  if (attributes.backendType !== '') fields.push(['BackendType', attributes.backendType]);
  if (attributes.backendData !== undefined) fields.push(['BackendData', attributes.backendData]);
  if (attributes.backendV6Data !== undefined) fields.push(['BackendV6Data', attributes.backendV6Data]);
  if (attributes.port !== undefined) fields.push(['Port', attributes.port]);
  if (extra.expiresAt !== undefined) fields.push(['Expiration', extra.expiresAt.toISOString()]);
  if (extra.owner !== undefined) fields.push(['Owner', extra.owner]);
  const texts = fields.map(([name, value]) => `"${name}":${goJson(value)}`);
  let room = MAX_UNKNOWN_CHARS;
  for (const { key, raw } of extra.unknown ?? []) {
    const text = `${goJson(key)}:${raw}`;
    room -= text.length;
    if (room >= 0) texts.push(text);
  }
  return `{${texts.join(',')}}`;
}

/**
 * Reads a stored value: names without regard to case, unknown fields skipped, a missing PublicIP is 0.0.0.0.
 * @throws PodwireError STORE_CORRUPT for anything that is not one whole value.
 */
export function decodeLease(text: string): StoredLease {
  const object = parseObject(text);
  const publicIpv6 = address(object.lastValue('PublicIPv6'), 'PublicIPv6', 6);
  const backendData = object.lastValue('BackendData')?.value;
  const backendV6Data = object.lastValue('BackendV6Data')?.value;
  const expiresAt = expiration(object.lastValue('Expiration'));
  const owner = string(object.lastValue('Owner'), 'Owner');
  if (owner !== undefined && (owner === '' || owner.length > MAX_OWNER_CHARS)) {
    throw corrupt(`Owner must have 1 to ${MAX_OWNER_CHARS} characters`);
  }
  const port = udpPort(object.lastValue('Port'));
  const unknown = object.lastFields().filter(({ key }) => !KNOWN.has(key.toLowerCase()));
  return {
    attributes: {
      publicIp: address(object.last('PublicIP'), 'PublicIP', 4) ?? Address.fromUint32(0),
      ...(publicIpv6 && { publicIpv6 }),
      backendType: string(object.lastValue('BackendType'), 'BackendType') ?? '',
      ...(backendData !== undefined && { backendData }),
      ...(backendV6Data !== undefined && { backendV6Data }),
      ...(port !== undefined && { port }),
    },
    ...(expiresAt && { expiresAt }),
    ...(owner !== undefined && { owner }),
    ...(unknown.length > 0 && { unknown }),
  };
}

/** {@link decodeLease}, or undefined for what it refuses. */
export function tryDecodeLease(text: string): StoredLease | undefined {
  try {
    return decodeLease(text);
  } catch {
    return undefined;
  }
}

/** Whether peers would have to do anything about the difference. */
export function sameAttributes(a: LeaseAttributes, b: LeaseAttributes): boolean {
  return encodeLease(a) === encodeLease(b);
}

function parseObject(text: string): JsonObject {
  if (text.length > MAX_VALUE_BYTES) throw corrupt(`${text.length} characters, more than ${MAX_VALUE_BYTES}`);
  if (text.trim() === '') throw corrupt('the value is empty');
  try {
    return new JsonObject(text);
  } catch (error) {
    throw corrupt(`not one whole JSON object: ${shorten(messageOf(error))}`, error);
  }
}

function address(field: JsonField | undefined, name: string, family: 4 | 6): Address | undefined {
  if (field === undefined) return undefined;
  const parsed = typeof field.value === 'string' ? Address.tryParse(field.value) : undefined;
  if (parsed?.family !== family) {
    throw corrupt(`${name} must be an IPv${family} address, it is ${describeJson(field.value)}`);
  }
  return parsed;
}

function string(field: JsonField | undefined, name: string): string | undefined {
  if (field === undefined || typeof field.value === 'string') return field?.value as string | undefined;
  throw corrupt(`${name} must be a string, it is ${describeJson(field.value)}`);
}

function expiration(field: JsonField | undefined): Date | undefined {
  const text = string(field, 'Expiration');
  if (text === undefined) return undefined;
  const ms = RFC3339.test(text) ? Date.parse(text) : Number.NaN;
  if (Number.isNaN(ms)) {
    throw corrupt(`Expiration must be a time like 2026-01-02T03:04:05.000Z, it is ${describeJson(text)}`);
  }
  return new Date(ms);
}

function udpPort(field: JsonField | undefined): number | undefined {
  if (field === undefined) return undefined;
  const { value } = field;
  if (typeof value === 'number' && Number.isInteger(value) && value >= 1 && value <= 65_535) return value;
  throw corrupt(`Port must be a UDP port from 1 to 65535, it is ${describeJson(value)}`);
}

function corrupt(what: string, cause?: unknown): PodwireError {
  return new PodwireError('STORE_CORRUPT', `unreadable lease value: ${what}`, { cause });
}
