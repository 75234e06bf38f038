/** Leases as JSON and as a table. */
import { leaseKey } from '../../control/lease-key.js';
import { refuseLease } from '../../control/lease-refusal.js';
import type { Lease } from '../../control/lease.js';
import type { NetworkConfig } from '../../control/network-config.js';
import { formatDuration } from '../format.js';
import { table, type Column } from '../table.js';

/** One lease in JSON. */
export interface LeaseEntry {
  /** Its name in the store: `10.5.34.0-24`. */
  readonly key: string;
  readonly subnet: string;
  readonly subnet6?: string;
  readonly publicIp: string;
  readonly publicIpv6?: string;
  /** As stored: empty for udp. */
  readonly backendType: string;
  readonly backendData?: unknown;
  readonly backendV6Data?: unknown;
  /** ISO 8601; absent for a reservation. */
  readonly expiresAt?: string;
  /** A lease without end, kept for the host with this PublicIP. */
  readonly reserved: boolean;
  /** The agent that holds it, where it said so. */
  readonly owner?: string;
  /** Why podwire hosts of this network refuse it, if they do. */
  readonly refused?: string;
}

/** `podwire leases list --json`. */
export interface LeaseDocument {
  readonly schema: 'podwire-leases/1';
  readonly store: string;
  readonly leases: readonly LeaseEntry[];
}

/** @param config for the judgement; undefined where there is none that can be read. */
export function leaseEntry(lease: Lease, config?: NetworkConfig): LeaseEntry {
  const { publicIp, publicIpv6, backendType, backendData, backendV6Data } = lease.attributes;
  const refusal = config && refuseLease(lease, { config, ownAddresses: [], overlapping: () => undefined });
  return {
    key: leaseKey(lease),
    subnet: lease.subnet.toString(),
    ...(lease.subnet6 && { subnet6: lease.subnet6.toString() }),
    publicIp: publicIp.toString(),
    ...(publicIpv6 && { publicIpv6: publicIpv6.toString() }),
    backendType,
    ...(backendData !== undefined && { backendData }),
    ...(backendV6Data !== undefined && { backendV6Data }),
    ...(lease.expiresAt && { expiresAt: lease.expiresAt.toISOString() }),
    reserved: lease.expiresAt === undefined,
    ...(lease.owner !== undefined && { owner: lease.owner }),
    ...(refusal && { refused: refusal.detail.replace(/^lease \S+ refused: /, '') }),
  };
}

/** `ends in 23h 10m`, `reserved`, `ENDED 5m ago`. */
export function formatEnd(expiresAt: string | undefined, now: Date): string {
  if (expiresAt === undefined) return 'reserved';
  const leftMs = Date.parse(expiresAt) - now.getTime();
  return leftMs > 0 ? `ends in ${formatDuration(leftMs)}` : `ENDED ${formatDuration(-leftMs)} ago`;
}

/** Nobody knows the backend of a reservation whose host has not come yet. */
function backendOf({ backendType, reserved }: LeaseEntry): string {
  return backendType || (reserved ? '-' : 'udp');
}

const json = (value: unknown): string => (value === undefined ? '' : JSON.stringify(value));

function columns(now: Date): readonly Column<LeaseEntry>[] {
  return [
    { title: 'SUBNET', text: ({ subnet }) => subnet },
    { title: 'SUBNET6', text: ({ subnet6 }) => subnet6 ?? '', giveWay: 1 },
    { title: 'PUBLIC IP', text: ({ publicIp }) => publicIp },
    { title: 'PUBLIC IPV6', text: ({ publicIpv6 }) => publicIpv6 ?? '', giveWay: 3 },
    { title: 'BACKEND', text: backendOf, giveWay: 2 },
    { title: 'LEASE', text: ({ expiresAt }) => formatEnd(expiresAt, now) },
    { title: 'REFUSED', text: ({ refused }) => refused ?? '' },
    { title: 'OWNER', text: ({ owner }) => owner ?? '', giveWay: 4 },
    { title: 'DATA', text: ({ backendData }) => json(backendData), giveWay: 5 },
    { title: 'DATA6', text: ({ backendV6Data }) => json(backendV6Data), giveWay: 6 },
  ];
}

/** @param width in characters; default unlimited */
export function formatLeases({ leases, store }: LeaseDocument, now: Date, width?: number): string[] {
  return leases.length === 0 ? [`no leases in ${store}`] : table(columns(now), leases, width);
}

/** One lease in one line. */
export function formatLease(lease: LeaseEntry, now: Date): string {
  const { subnet, subnet6, publicIp, publicIpv6, expiresAt, refused } = lease;
  return [
    subnet,
    ...(subnet6 === undefined ? [] : [subnet6]),
    publicIp,
    ...(publicIpv6 === undefined ? [] : [publicIpv6]),
    backendOf(lease),
    formatEnd(expiresAt, now),
    ...(refused === undefined ? [] : [`refused: ${refused}`]),
  ].join('  ');
}
