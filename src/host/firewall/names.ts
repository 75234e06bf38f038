/**
 * What podwire's firewall rules are called on this host.
 *
 * Two agents may share a host: whatever is named here belongs to one subnet file. The agent of flannel's own subnet
 * file uses flannel's chain names in iptables, so that either daemon finds the other's rules in place.
 */
import { createHash } from 'node:crypto';
import { realpath } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import type { Prefix } from '../../net/prefix.js';

/** The agent with this file takes flannel's names. */
const FLANNEL_SUBNET_FILE = '/run/flannel/subnet.env';
const FLANNEL_KEY = 'default';

/** flannel's iptables chains (contract 8). */
export const FLANNEL_CHAINS = { masquerade: 'FLANNEL-POSTRTG', forward: 'FLANNEL-FWD' } as const;

/** flannel's nft tables, one of each family whatever the network has. */
export const FLANNEL_TABLES = [
  { family: 'ip', table: 'flannel-ipv4' },
  { family: 'ip6', table: 'flannel-ipv6' },
] as const;

/** Comments of flannel's iptables rules; ours have the same. */
export const COMMENTS = { masquerade: 'flanneld masq', forward: 'flanneld forward' } as const;

export interface FirewallNames {
  readonly key: string;
  /** The nft table, one of family `ip` and one of `ip6`. */
  readonly table: string;
  readonly chains: { readonly masquerade: string; readonly forward: string };
  /** The chains are flannel's own: another daemon's rules may stand in them beside ours. */
  readonly shared: boolean;
  /** Marks each accept that we place in a chain of somebody else. */
  readonly admission: string;
}

/**
 * A short name for the owner of a subnet file: `default` for flannel's, else its base name and a hash of its path.
 * Symbolic links on the way (`/var/run`) make no difference.
 */
export async function firewallKey(subnetFile: string): Promise<string> {
  const path = await canonical(resolve(subnetFile));
  if (path === FLANNEL_SUBNET_FILE) return FLANNEL_KEY;
  const name = basename(path)
    .replace(/\.env$/, '')
    .replaceAll(/[^A-Za-z0-9]+/g, '_')
    .slice(0, 8);
  return `${name}-${createHash('sha256').update(path).digest('hex').slice(0, 8)}`;
}

/** The same for an agent without a subnet file: its networks are its own on this host. */
export function networkKey(networks: readonly Prefix[]): string {
  return `net-${createHash('sha256').update(networks.join(' ')).digest('hex').slice(0, 8)}`;
}

/** @param key of {@link firewallKey}, or any text of letters, digits, `_` and `-`, at most 20 long. */
export function firewallNames(key: string): FirewallNames {
  const shared = key === FLANNEL_KEY;
  // The last part of the key tells agents apart; a chain's name has 28 bytes at most (XT_EXTENSION_MAXNAMELEN).
  const suffix = shared ? '' : `-${key.slice(-8)}`;
  return {
    key,
    table: `podwire-${key}`,
    chains: {
      masquerade: `${FLANNEL_CHAINS.masquerade}${suffix}`,
      forward: `${FLANNEL_CHAINS.forward}${suffix}`,
    },
    shared,
    admission: `podwire forward ${key}`,
  };
}

/** The path without symbolic links, as far as its directories exist. */
async function canonical(path: string): Promise<string> {
  const directory = dirname(path);
  if (directory === path) return path;
  const real = await realpath(directory).catch(() => canonical(directory));
  return join(real, basename(path));
}
