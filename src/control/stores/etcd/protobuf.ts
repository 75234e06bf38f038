/**
 * Protocol buffers (proto3 wire format) for the few messages that etcd needs, from a table of their fields. The gRPC
 * library leaves this open; its companion for it takes longer to load than everything else an agent does to get its
 * lease.
 *
 * 64-bit numbers are decimal strings (numbers are taken too), bytes are Buffers, enums the names of their values.
 * Reading fills in what is not there: `'0'`, `false`, `''`, an empty Buffer, the first value, `null`, `[]`; a field
 * marked `optional` stays undefined. Writing leaves undefined fields out and writes all others, zero included.
 */

export type FieldRule = 'repeated' | 'optional';

/** Field number and type: a scalar, or the name of a message or enum. */
export type Field = readonly [id: number, type: string, rule?: FieldRule];

export interface Schema {
  readonly messages: Readonly<Record<string, Readonly<Record<string, Field>>>>;
  /** The names of an enum's values, by number. */
  readonly enums: Readonly<Record<string, readonly string[]>>;
}

/** Wire types; 3 and 4 (groups) are not in proto3. */
const VARINT = 0;
const FIXED64 = 1;
const LENGTH = 2;
const FIXED32 = 5;

const EMPTY = Buffer.alloc(0);

export function encode(schema: Schema, message: string, value: object): Buffer {
  const parts: Uint8Array[] = [];
  write(schema, message, value as Record<string, unknown>, parts);
  return Buffer.concat(parts);
}

/** @throws RangeError for bytes that end in the middle of something. */
export function decode(schema: Schema, message: string, bytes: Buffer): object {
  const fields = schema.messages[message]!;
  const value: Record<string, unknown> = {};
  for (const [name, [, type, rule]] of Object.entries(fields)) {
    if (rule === 'repeated') value[name] = [];
    else if (rule !== 'optional') value[name] = defaultOf(schema, type);
  }
  const byId = fieldsById(schema, message);
  const reader = { bytes, at: 0 };
  while (reader.at < bytes.length) {
    const tag = Number(readVarint(reader));
    const field = byId.get(tag >>> 3);
    const wire = tag & 7;
    if (field === undefined || (wire !== VARINT && wire !== LENGTH)) {
      skip(reader, wire);
      continue;
    }
    const [name, type, rule] = field;
    const item = wire === LENGTH ? readBytes(schema, type, take(reader)) : readNumber(schema, type, readVarint(reader));
    if (rule === 'repeated') (value[name] as unknown[]).push(item);
    else value[name] = item;
  }
  return value;
}

function write(schema: Schema, message: string, value: Record<string, unknown>, parts: Uint8Array[]): void {
  for (const [name, [id, type]] of Object.entries(schema.messages[message]!)) {
    const content = value[name];
    if (content === undefined) continue;
    for (const item of Array.isArray(content) ? (content as unknown[]) : [content]) {
      if (type in schema.messages) {
        writeBytes(id, encode(schema, type, item as object), parts);
      } else if (type === 'bytes') {
        writeBytes(id, item as Buffer, parts);
      } else if (type === 'string') {
        writeBytes(id, Buffer.from(item as string), parts);
      } else {
        const number = schema.enums[type]?.indexOf(item as string) ?? (item as string | number | boolean);
        parts.push(varint(BigInt((id << 3) | VARINT)), varint(BigInt.asUintN(64, BigInt(number))));
      }
    }
  }
}

function writeBytes(id: number, bytes: Uint8Array, parts: Uint8Array[]): void {
  parts.push(varint(BigInt((id << 3) | LENGTH)), varint(BigInt(bytes.length)), bytes);
}

function varint(value: bigint): Uint8Array {
  const bytes: number[] = [];
  let left = value;
  for (; left > 0x7fn; left >>= 7n) bytes.push(Number(left & 0x7fn) | 0x80);
  bytes.push(Number(left));
  return Uint8Array.from(bytes);
}

interface Reader {
  readonly bytes: Buffer;
  at: number;
}

/** A number up to 2^49, a bigint above. */
function readVarint(reader: Reader): number | bigint {
  let value = 0;
  let scale = 1;
  for (let count = 0; count < 7; count++) {
    const byte = next(reader);
    value += (byte & 0x7f) * scale;
    if (byte < 0x80) return value;
    scale *= 0x80;
  }
  let large = BigInt(value);
  for (let shift = 49n; shift < 70n; shift += 7n) {
    const byte = next(reader);
    large |= BigInt(byte & 0x7f) << shift;
    if (byte < 0x80) return large;
  }
  throw new RangeError('a number of more than 64 bits');
}

function next(reader: Reader): number {
  const byte = reader.bytes[reader.at++];
  if (byte === undefined) throw new RangeError('the message ends within a field');
  return byte;
}

function take(reader: Reader): Buffer {
  const start = Number(readVarint(reader)) + reader.at;
  const bytes = reader.bytes.subarray(reader.at, start);
  if (start > reader.bytes.length) throw new RangeError('the message ends within a field');
  reader.at = start;
  return bytes;
}

function skip(reader: Reader, wire: number): void {
  if (wire === VARINT) readVarint(reader);
  else if (wire === LENGTH) take(reader);
  else if (wire === FIXED64 || wire === FIXED32) reader.at += wire === FIXED64 ? 8 : 4;
  else throw new RangeError(`wire type ${wire}`);
}

function readBytes(schema: Schema, type: string, bytes: Buffer): unknown {
  if (type in schema.messages) return decode(schema, type, bytes);
  return type === 'string' ? bytes.toString() : bytes;
}

function readNumber(schema: Schema, type: string, value: number | bigint): unknown {
  if (type === 'bool') return Number(value) !== 0;
  const names = schema.enums[type];
  if (names) return names[Number(value)] ?? String(value);
  return type === 'int64' && typeof value === 'bigint' ? String(BigInt.asIntN(64, value)) : String(value);
}

function defaultOf(schema: Schema, type: string): unknown {
  if (type === 'bool') return false;
  if (type === 'string') return '';
  if (type === 'bytes') return EMPTY;
  if (type in schema.messages) return null;
  return schema.enums[type]?.[0] ?? '0';
}

type Known = readonly [name: string, type: string, rule: FieldRule | undefined];
const tables = new WeakMap<Schema, Map<string, Map<number, Known>>>();

function fieldsById(schema: Schema, message: string): Map<number, Known> {
  let table = tables.get(schema);
  if (!table) tables.set(schema, (table = new Map()));
  let byId = table.get(message);
  if (!byId) {
    const fields = Object.entries(schema.messages[message]!);
    byId = new Map(fields.map(([name, [id, type, rule]]) => [id, [name, type, rule]]));
    table.set(message, byId);
  }
  return byId;
}
