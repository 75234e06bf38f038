/**
 * Rules for our networks that nobody keeps any more: of the manager that we do not use, of the other iptables flavour,
 * and of flanneld. What speaks of other networks only is another daemon's and stays.
 */
import type { Prefix } from '../../net/prefix.js';
import type { Runner } from '../exec.js';
import { Iptables } from './iptables.js';
import { compareChains, flannelChainsWithout, ownChains } from './iptables-manager.js';
import { COMMENTS, FLANNEL_CHAINS, FLANNEL_TABLES, type FirewallNames } from './names.js';
import { listRules, listTable, nft, type NftChain, type NftListing } from './nft.js';
import type { FirewallTools, Flavour } from './tools.js';

/** Something that can go, and how. */
export interface Removal {
  /** For people: `nft table ip flannel-ipv4`. */
  readonly what: string;
  readonly remove: () => Promise<void>;
}

export interface LeftoverSearch {
  readonly runner: Runner;
  readonly names: FirewallNames;
  readonly tools: FirewallTools;
  /** Networks whose rules are this agent's; undefined when nobody knows: then only what bears our own names goes. */
  readonly networks: readonly Prefix[] | undefined;
  /** The manager in use, whose rules stay; undefined to find those too. */
  readonly keep: 'nft' | `iptables-${Flavour}` | undefined;
  /** All tables and chains as nft lists them; undefined where it cannot. */
  readonly listing: NftListing | undefined;
}

/** @throws {PodwireError} `COMMAND_FAILED` when the host's rules cannot be read. */
export async function findLeftovers(search: LeftoverSearch): Promise<Removal[]> {
  const { runner, tools, listing } = search;
  const chains = listing?.chains;
  const removals = listing === undefined ? [] : await inNftTables(search, listing.tables);
  for (const programs of tools.iptables) {
    const table = programs.family === 4 ? 'ip' : 'ip6';
    const isAbsent = chains !== undefined && !chains.some((chain) => isFlannelChain(chain, table));
    if (programs.flavour === 'nft' && isAbsent) continue;
    removals.push(...(await inIptables(search, new Iptables(programs, runner))));
  }
  for (const [family, table] of [
    [4, 'ip'],
    [6, 'ip6'],
  ] as const) {
    if (tools.iptables.some((programs) => programs.flavour === 'nft' && programs.family === family)) continue;
    for (const chain of (chains ?? []).filter((candidate) => isFlannelChain(candidate, table))) {
      removals.push(...(await inForeignIptables(search, chain)));
    }
  }
  return removals;
}

/** A chain with flannel's name (ours may have something behind it) in a table that iptables-nft keeps. */
function isFlannelChain({ family, table, name }: NftChain, wanted: string): boolean {
  return (
    family === wanted &&
    ((table === 'nat' && name.startsWith(FLANNEL_CHAINS.masquerade)) ||
      (table === 'filter' && name.startsWith(FLANNEL_CHAINS.forward)))
  );
}

async function inNftTables(
  { runner, names, networks, keep }: LeftoverSearch,
  tables: ReadonlySet<string>,
): Promise<Removal[]> {
  const removal = (name: string): Removal => ({
    what: `nft table ${name}`,
    remove: async () => void (await nft(runner, `add table ${name}\ndelete table ${name}\n`)),
  });
  const removals: Removal[] = [];
  if (keep !== 'nft') {
    for (const name of [`ip ${names.table}`, `ip6 ${names.table}`]) if (tables.has(name)) removals.push(removal(name));
  }
  // flanneld makes both tables, also when one of them has nothing to say.
  const empty: Removal[] = [];
  let isFlannelGone = true;
  for (const { family, table } of FLANNEL_TABLES) {
    if (!tables.has(`${family} ${table}`) || networks === undefined) continue;
    const listing = (await listTable(runner, family, table)) ?? '';
    if (mentions(listing, networks)) removals.push(removal(`${family} ${table}`));
    else if (/[sd]addr/.test(listing)) isFlannelGone = false;
    else empty.push(removal(`${family} ${table}`));
  }
  return isFlannelGone ? [...removals, ...empty] : removals;
}

async function inIptables(search: LeftoverSearch, iptables: Iptables): Promise<Removal[]> {
  const { names, networks, keep } = search;
  const nothing = { masquerade: [], forward: [] };
  // In chains with flannel's names nobody can tell whose a rule is without the networks.
  const isTelling = !names.shared || networks !== undefined;
  const chains = [
    ...(keep === `iptables-${iptables.programs.flavour}` || !isTelling ? [] : ownChains(names, nothing, networks)),
    ...(names.shared || networks === undefined ? [] : flannelChainsWithout(networks)),
  ];
  const removals: Removal[] = [];
  for (const chain of chains) {
    const { edits } = await compareChains(iptables, [chain]);
    if (Object.keys(edits).length === 0) continue;
    removals.push({ what: `${iptables.toString()} ${chain.table} ${chain.name}`, remove: () => iptables.write(edits) });
  }
  return removals;
}

/** flanneld in a container brings its own iptables-nft: on a host without one, nft takes its chains apart. */
async function inForeignIptables(search: LeftoverSearch, chain: NftChain): Promise<Removal[]> {
  const { runner, names, networks } = search;
  const isOwn = Object.values(names.chains).includes(chain.name);
  const rules = (await listRules(runner, chain)) ?? [];
  const speaksOf = rules.filter(({ text }) => /[sd]addr/.test(text));
  const isOurs =
    networks === undefined ? isOwn && !names.shared : speaksOf.every(({ text }) => mentions(`${text}\n`, networks));
  if (!isOurs) return [];
  const isMasquerade = chain.table === 'nat';
  const hook = { ...chain, name: isMasquerade ? 'POSTROUTING' : 'FORWARD' };
  const jumps = ((await listRules(runner, hook)) ?? []).filter(({ text }) => text.endsWith(`jump ${chain.name}`));
  const name = `${chain.family} ${chain.table} ${chain.name}`;
  return [
    {
      what: `chain ${name} (${isMasquerade ? COMMENTS.masquerade : COMMENTS.forward})`,
      remove: async () => {
        const commands = jumps.map(
          ({ handle }) => `delete rule ${hook.family} ${hook.table} ${hook.name} handle ${handle}\n`,
        );
        await nft(runner, `${commands.join('')}flush chain ${name}\ndelete chain ${name}\n`);
      },
    },
  ];
}

/** Whether a listing speaks of one of the networks, or of a part of one. */
function mentions(listing: string, networks: readonly Prefix[]): boolean {
  return networks.some(
    (network) => listing.includes(` ${network.toString()} `) || listing.includes(` ${network.toString()}\n`),
  );
}
