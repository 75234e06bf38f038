/** What operators do to leases in etcd. */
import type { Clock } from '../../clock.js';
import { encodeLease, tryDecodeLease } from '../../lease-codec.js';
import { tryParseLeaseKey } from '../../lease-key.js';
import type { Lease, LeaseAttributes, LeaseSubnets, StoreAdmin } from '../../lease.js';
import { parseNetworkConfig } from '../../network-config.js';
import { checkReservation } from '../../reservation.js';
import { EtcdFault } from './faults.js';
import type { EtcdKeys } from './keys.js';
import type { EtcdLeases } from './leases.js';
import { NO_LEASE, put, unchanged } from './protocol.js';
import type { EtcdTransport } from './transport.js';
import type { EtcdView } from './view.js';

export interface EtcdAdminOptions {
  readonly transport: EtcdTransport;
  readonly view: EtcdView;
  readonly keys: EtcdKeys;
  readonly clock: Clock;
  readonly leases: EtcdLeases;
  readonly call: <T>(
    what: string,
    signal: AbortSignal | undefined,
    run: (signal: AbortSignal) => Promise<T>,
  ) => Promise<T>;
}

/** Tries of a write that races with an agent's. */
const ATTEMPTS = 5;
/** Look-ups of a lease's remaining life that run together. */
const CONCURRENCY = 32;

export function etcdAdmin(options: EtcdAdminOptions): StoreAdmin {
  const { call, leases } = options;
  return {
    list: (signal) => call('list the leases', signal, (both) => list(options, both)),
    reserve: (subnets, attributes) =>
      call('reserve a subnet', undefined, () => again(() => reserve(options, subnets, attributes))),
    remove: (subnets) => call('remove a lease', undefined, () => again(() => remove(options, subnets))),
    readConfig: (signal) => call('read the network config', signal, (both) => leases.readConfig(both)),
    writeConfig: async (json) => {
      await call('write the network config', undefined, () => again(() => writeConfig(options, json)));
    },
  };
}

/** Repeats what returns undefined because somebody else wrote at the same time. */
async function again<T>(run: () => Promise<T | undefined>): Promise<T> {
  for (let attempt = 1; ; attempt++) {
    const result = await run();
    if (result !== undefined) return result;
    if (attempt >= ATTEMPTS) throw new EtcdFault('unable', 'etcd', 'others are changing it all the time');
  }
}

async function list(options: EtcdAdminOptions, signal: AbortSignal): Promise<readonly Lease[]> {
  const { leases, keys } = options;
  const { kvs } = await leases.readAll(signal);
  const found: Lease[] = [];
  const open: { at: number; id: string }[] = [];
  for (const kv of kvs) {
    const subnets = tryParseLeaseKey(keys.nameOf(kv.key));
    const stored = subnets && tryDecodeLease(kv.value.toString());
    if (!stored) continue;
    const { attributes, owner, expiresAt } = stored;
    if (kv.lease !== NO_LEASE && !expiresAt) open.push({ at: found.length, id: kv.lease });
    found.push({
      ...subnets,
      attributes,
      ...(owner !== undefined && { owner }),
      ...(kv.lease !== NO_LEASE && expiresAt && { expiresAt }),
    });
  }
  await lookUp(options, found, open, signal);
  return found;
}

/** flanneld does not write down when its leases end; etcd knows. */
async function lookUp(
  { transport, clock }: EtcdAdminOptions,
  found: Lease[],
  open: { at: number; id: string }[],
  signal: AbortSignal,
): Promise<void> {
  const work = async (): Promise<void> => {
    for (let next = open.pop(); next; next = open.pop()) {
      const { TTL } = await transport.read('leaseTimeToLive', { ID: next.id }, signal);
      found[next.at] = { ...found[next.at]!, expiresAt: new Date(clock.now() + Math.max(0, Number(TTL)) * 1000) };
    }
  };
  await Promise.all(Array.from({ length: Math.min(CONCURRENCY, open.length) }, work));
}

async function reserve(
  options: EtcdAdminOptions,
  subnets: LeaseSubnets,
  attributes: LeaseAttributes,
): Promise<Lease | undefined> {
  const { transport, view, keys, leases } = options;
  const snapshot = await leases.readAll();
  const config = leases.parseConfig(snapshot.config?.value.toString());
  const held = snapshot.kvs.flatMap((kv) => {
    const at = keys.nameOf(kv.key);
    const theirs = tryParseLeaseKey(at) ?? keys.heldByFlannel(at);
    return theirs
      ? [{ ...theirs, path: keys.pathOf(at), attributes: tryDecodeLease(kv.value.toString())?.attributes }]
      : [];
  });
  checkReservation(config, subnets, attributes, held);
  const name = view.table.nameOf(subnets);
  const present = snapshot.kvs.find((kv) => keys.nameOf(kv.key) === name);
  const stored = present && tryDecodeLease(present.value.toString());
  const { expiresAt: _ends, ...kept } = stored ?? { attributes };
  const key = keys.keyOf(name);
  const value = Buffer.from(encodeLease(kept.attributes, kept));
  const { succeeded, header } = await transport.write('txn', {
    compare: [
      ...(snapshot.config ? [unchanged(snapshot.config)] : []),
      present ? unchanged(present) : { key, result: 'EQUAL', target: 'VERSION', version: 0 },
      {
        key: keys.first,
        range_end: keys.end,
        result: 'LESS',
        target: 'CREATE',
        create_revision: snapshot.revision + 1,
      },
    ],
    success: [put(key, value, undefined)],
  });
  if (!succeeded) return undefined;
  const revision = header?.revision ?? '0';
  view.put({ key, value, lease: NO_LEASE, mod_revision: revision, create_revision: revision });
  if (present) leases.revokeUnused(present.lease);
  const { owner } = kept as { owner?: string };
  return { ...subnets, attributes: kept.attributes, ...(owner !== undefined && { owner }) };
}

async function remove(options: EtcdAdminOptions, subnets: LeaseSubnets): Promise<boolean | undefined> {
  const { transport, view, keys, leases } = options;
  const { kvs } = await leases.readAll();
  const name = view.table.nameOf(subnets);
  const kv = kvs.find((each) => keys.nameOf(each.key) === name);
  if (!kv) return false;
  const { succeeded, header } = await transport.write('txn', {
    compare: [unchanged(kv)],
    success: [{ request_delete_range: { key: kv.key } }],
  });
  if (!succeeded) return undefined;
  view.delete(name, Number(header?.revision ?? 0));
  leases.revokeUnused(kv.lease);
  return true;
}

async function writeConfig({ transport, keys }: EtcdAdminOptions, json: string): Promise<true | undefined> {
  parseNetworkConfig(json);
  const { kvs } = await transport.read('range', { key: keys.config });
  const [kv] = kvs;
  // Conditional, so that a write that is done late cannot undo a newer one.
  const { succeeded } = await transport.write('txn', {
    compare: [kv ? unchanged(kv) : { key: keys.config, result: 'EQUAL', target: 'VERSION', version: 0 }],
    success: [put(keys.config, Buffer.from(json), undefined)],
  });
  return succeeded || undefined;
}
