/** What `podwire lab` can be run with: the network config of each backend, and what the checks must know of it. */
import type { Family } from '../../net/prefix.js';
import { UsageError } from '../usage.js';
import { NETWORKS } from './topology.js';

/** What the checks must know of the overlay. */
export interface OverlayTraits {
  /** Of pods and underlay; the first is that of checks that name none. */
  readonly families: readonly Family[];
  /** Packets pass no workers of podwire's, and its counters do not see them. */
  readonly isKernel: boolean;
  /** A pod hears at once that there is no such host; else it waits. */
  readonly answersUnreachable: boolean;
}

export interface LabBackend {
  /** For the heading: `vxlan by podwire, IPv4 and IPv6`. */
  readonly description: string;
  readonly traits: OverlayTraits;
  /** The network config. */
  readonly config: Readonly<Record<string, unknown>>;
  /** For tcpdump on the underlay. */
  readonly filter: string;
  /** Agents need a `/var/run/wireguard` of their own, where wireguard-go puts its sockets by the device's name. */
  readonly ownWireguardSockets: boolean;
}

interface Row {
  readonly what: string;
  readonly backend: Readonly<Record<string, unknown>>;
  readonly filter: string;
  /** Podwire's workers carry the packets. */
  readonly isUser?: true;
  readonly families?: readonly Family[];
  /** Packets to nobody vanish. */
  readonly isSilent?: true;
}

const ROWS: Readonly<Record<string, Row>> = {
  udp: { what: 'udp', backend: { Type: 'udp' }, filter: 'udp port 8285', isUser: true },
  vxlan: {
    what: 'vxlan by podwire',
    backend: { Type: 'vxlan', Mode: 'user' },
    filter: 'udp port 8472',
    isUser: true,
  },
  'vxlan-kernel': {
    what: "vxlan by the kernel's device",
    backend: { Type: 'vxlan', Mode: 'kernel' },
    filter: 'udp port 8472',
  },
  'host-gw': { what: 'host-gw', backend: { Type: 'host-gw' }, filter: 'icmp or tcp or udp' },
  ipip: {
    what: 'ipip by podwire',
    backend: { Type: 'ipip', Mode: 'user' },
    filter: 'ip proto 4',
    isUser: true,
    families: [4],
  },
  'ipip-kernel': {
    what: "ipip by the kernel's device",
    backend: { Type: 'ipip', Mode: 'kernel' },
    filter: 'ip proto 4',
    families: [4],
  },
  wireguard: {
    what: 'wireguard',
    backend: { Type: 'wireguard' },
    filter: 'udp port 51820',
    // The device takes packets for all pods, and has no peer for this one: it says nothing.
    isSilent: true,
  },
  extension: {
    what: 'extension, kernel routes by its commands',
    backend: {
      Type: 'extension',
      SubnetAddCommand: 'ip route replace $SUBNET via $PUBLIC_IP',
      SubnetRemoveCommand: 'ip route del $SUBNET',
    },
    filter: 'icmp or tcp or udp',
  },
};

export const LAB_BACKENDS: readonly string[] = Object.keys(ROWS);

/** @throws {UsageError} for a backend that the lab does not know, or one without a family that is asked for. */
export function labBackend(name: string, families: readonly Family[]): LabBackend {
  const row = Object.hasOwn(ROWS, name) ? ROWS[name] : undefined;
  if (row === undefined) {
    throw new UsageError(
      name === 'alloc'
        ? '--backend alloc: it carries no packets, so there is nothing for the lab to check'
        : `--backend ${name}: the lab knows ${LAB_BACKENDS.join(', ')}`,
    );
  }
  const missing = families.find((family) => row.families?.includes(family) === false);
  if (missing !== undefined) throw new UsageError(`--backend ${name} carries no IPv${String(missing)}`);
  const [has4, has6] = [families.includes(4), families.includes(6)];
  return {
    description: `${row.what}${has6 ? (has4 ? ', IPv4 and IPv6' : ', IPv6 only') : ''}`,
    traits: { families, isKernel: row.isUser !== true, answersUnreachable: row.isSilent !== true },
    config: {
      ...(has4 ? { Network: NETWORKS[4].toString(), SubnetLen: 24 } : { EnableIPv4: false }),
      ...(has6 ? { EnableIPv6: true, IPv6Network: NETWORKS[6].toString(), IPv6SubnetLen: 64 } : {}),
      Backend: row.backend,
    },
    filter: row.filter,
    ownWireguardSockets: name === 'wireguard',
  };
}
