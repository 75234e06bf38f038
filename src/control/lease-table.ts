/**
 * What a host last knew of its network, as one file: network config, own lease, all other leases. With it an agent
 * starts and forwards while the store is away.
 *
 * The file is one line with the format's version and the SHA-256 of the rest in hex, then one line of JSON; leases are
 * written as in a store (lease-key.ts, lease-codec.ts):
 *
 * ```
 * podwire-lease-table 1 9f86d0…
 * {"store":"…","savedAt":"…","config":{…},"own":["10.5.34.0-24",{…}],"leases":[["10.5.35.0-24",{…}],…]}
 * ```
 * It is replaced in one step, and a file that is damaged in any way counts as none.
 */
import { createHash } from 'node:crypto';
import { open } from 'node:fs/promises';
import { errnoOf, messageOf, PodwireError } from '../errors.js';
import { replaceFile } from '../host/replace-file.js';
import { decodeLease, encodeLease } from './lease-codec.js';
import { leaseKey, parseLeaseKey } from './lease-key.js';
import type { Lease } from './lease.js';
import { formatNetworkConfig, type NetworkConfig, parseNetworkConfig } from './network-config.js';

export interface LeaseTable {
  /** Description of the store it was learnt from. */
  readonly store: string;
  readonly savedAt: Date;
  readonly config: NetworkConfig;
  /** Absent after a release. */
  readonly own?: Lease;
  /** The other hosts'. */
  readonly leases: readonly Lease[];
}

const MAGIC = 'podwire-lease-table 1';
/** 5,000 leases take about 1 MB. */
const LARGEST_BYTES = 256 * 1024 * 1024;

/**
 * Reads the table; undefined when there is no file.
 *
 * @throws {PodwireError} `STORE_CORRUPT` (damaged, or another version's), `SYSTEM` (unreadable).
 */
export async function readLeaseTable(path: string): Promise<LeaseTable | undefined> {
  let text: string;
  try {
    const file = await open(path, 'r');
    try {
      if ((await file.stat()).size > LARGEST_BYTES) throw corrupt(path, `it is larger than ${LARGEST_BYTES} bytes`);
      text = await file.readFile('utf8');
    } finally {
      await file.close();
    }
  } catch (error) {
    if (error instanceof PodwireError) throw error;
    if (errnoOf(error) === 'ENOENT' || errnoOf(error) === 'ENOTDIR') return undefined;
    throw fileError('read', path, error);
  }
  const end = text.indexOf('\n');
  const body = text.slice(end + 1).trimEnd();
  if (!text.startsWith(`${MAGIC} `)) throw corrupt(path, 'its first line is not that of this version');
  if (end < 0 || text.slice(MAGIC.length + 1, end) !== checksum(body)) throw corrupt(path, 'its checksum is wrong');
  try {
    return decode(body);
  } catch (error) {
    throw corrupt(path, messageOf(error), error);
  }
}

/**
 * Replaces the file (temporary file beside it, fsync, rename); mode 0600, a missing directory is made with 0755.
 *
 * @throws {PodwireError} `SYSTEM`; the old file is then as it was.
 */
export async function writeLeaseTable(path: string, table: LeaseTable): Promise<void> {
  const body = encode(table);
  try {
    await replaceFile(path, `${MAGIC} ${checksum(body)}\n${body}\n`, 0o600);
  } catch (error) {
    throw fileError('write', path, error);
  }
}

type Entry = readonly [key: string, value: unknown];

/** As text all along: what {@link encodeLease} writes is JSON already. */
function encode(table: LeaseTable): string {
  const fields = [
    `"store":${JSON.stringify(table.store)}`,
    `"savedAt":"${table.savedAt.toISOString()}"`,
    `"config":${formatNetworkConfig(table.config)}`,
    ...(table.own === undefined ? [] : [`"own":${entryOf(table.own)}`]),
    `"leases":[${table.leases.map(entryOf).join(',')}]`,
  ];
  return `{${fields.join(',')}}`;
}

function entryOf(lease: Lease): string {
  const { expiresAt, owner } = lease;
  return `[${JSON.stringify(leaseKey(lease))},${encodeLease(lease.attributes, { expiresAt, owner })}]`;
}

function decode(body: string): LeaseTable {
  const table = JSON.parse(body) as Record<string, unknown>;
  const { store, savedAt, config, own, leases } = table;
  const saved = new Date(String(savedAt));
  if (typeof store !== 'string' || !Array.isArray(leases) || Number.isNaN(saved.getTime())) {
    throw new Error('a field is missing');
  }
  return {
    store,
    savedAt: saved,
    config: parseNetworkConfig(JSON.stringify(config)),
    ...(own === undefined ? {} : { own: leaseOf(own as Entry) }),
    leases: (leases as Entry[]).map(leaseOf),
  };
}

function leaseOf([key, value]: Entry): Lease {
  return { ...parseLeaseKey(key), ...decodeLease(JSON.stringify(value)) };
}

function checksum(body: string): string {
  return createHash('sha256').update(body).digest('hex');
}

function corrupt(path: string, what: string, cause?: unknown): PodwireError {
  return new PodwireError('STORE_CORRUPT', `the lease table ${path} is damaged and not used: ${what}`, { cause });
}

function fileError(verb: string, path: string, error: unknown): PodwireError {
  const errno = errnoOf(error);
  return new PodwireError('SYSTEM', `cannot ${verb} the lease table ${path}: ${messageOf(error)}; see --state-dir`, {
    cause: error,
    ...(errno === undefined ? {} : { errno }),
  });
}
