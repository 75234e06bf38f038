/**
 * The nftables manager: one table of our own in family `ip` and one in `ip6`, replaced in one transaction, and
 * compared with what the kernel listed after that.
 *
 * Text, not JSON: nft may be built without it. A listing with handles (`-a`) is the same as long as nobody touches the
 * table, because every replaced rule gets a new handle, and our rules have no counters.
 */
import { messageOf, PodwireError } from '../../errors.js';
import type { Family } from '../../net/prefix.js';
import type { Runner } from '../exec.js';
import type { FirewallNames } from './names.js';
import { type FirewallPlan, forwardRules, type MasqueradeRule, MASQUERADE_MARK, masqueradeRules } from './plan.js';

/** Somebody may hold the kernel's table lock for long (a service proxy with thousands of rules). */
export const FIREWALL_TIMEOUT_MS = 15_000;

/** A step behind iptables' own priority (NF_IP_PRI_NAT_SRC), as flannel's jump is the last one of POSTROUTING. */
const NAT_PRIORITY = 101;

const NFT_FAMILY: Readonly<Record<Family, string>> = { 4: 'ip', 6: 'ip6' };

export interface NftChain {
  readonly family: string;
  readonly table: string;
  readonly name: string;
  /** Absent for a chain without a hook. */
  readonly type?: string;
  readonly hook?: string;
  readonly policy?: string;
}

/** Runs nft and gives its output, or undefined when what it asks for does not exist. */
async function tryNft(runner: Runner, input: string): Promise<string | undefined> {
  try {
    return await nft(runner, input);
  } catch (error) {
    if (/No such file or directory/.test(messageOf(error)) && !(error instanceof PodwireError && error.errno)) {
      return undefined;
    }
    throw error;
  }
}

/**
 * One transaction: all of it or nothing.
 *
 * @throws {PodwireError} `COMMAND_FAILED`.
 */
export function nft(runner: Runner, input: string): Promise<string> {
  return runner('nft', ['-a', '-f', '-'], { input, timeoutMs: FIREWALL_TIMEOUT_MS });
}

/** The rules of a chain with their handles, or undefined when there is no such chain. */
export async function listRules(
  runner: Runner,
  chain: Pick<NftChain, 'family' | 'table' | 'name'>,
): Promise<{ readonly text: string; readonly handle: number }[] | undefined> {
  const listing = await tryNft(runner, `list chain ${chain.family} ${chain.table} ${chain.name}\n`);
  return listing === undefined ? undefined : rulesOf(listing);
}

export async function listTable(runner: Runner, family: string, table: string): Promise<string | undefined> {
  return tryNft(runner, `list table ${family} ${table}\n`);
}

/** All tables and chains of the host, without their rules. */
export interface NftListing {
  /** `family table`. */
  readonly tables: ReadonlySet<string>;
  readonly chains: readonly NftChain[];
}

/** @throws {PodwireError} `COMMAND_FAILED`. */
export async function listChains(runner: Runner): Promise<NftListing> {
  return parseChains(await nft(runner, 'list chains\n'));
}

/** Reads `nft list chains`. */
export function parseChains(listing: string): NftListing {
  const tables = new Set<string>();
  const chains: NftChain[] = [];
  let table: { family: string; name: string } | undefined;
  let chain: NftChain | undefined;
  for (const line of listing.split('\n')) {
    const text = line.trim();
    const [, family, name] = /^table (\S+) (\S+) \{/.exec(text) ?? [];
    const [, chainName] = /^chain (\S+) \{/.exec(text) ?? [];
    const [, type, hook, rest] = /^type (\S+) hook (\S+) (.*)$/.exec(text) ?? [];
    if (family !== undefined && name !== undefined) {
      table = { family, name };
      tables.add(`${family} ${name}`);
    } else if (chainName !== undefined && table !== undefined) {
      chain = { family: table.family, table: table.name, name: chainName };
      chains.push(chain);
    } else if (type !== undefined && hook !== undefined && chain !== undefined) {
      const policy = /policy (\w+)/.exec(rest ?? '')?.[1] ?? 'accept';
      chains[chains.length - 1] = { ...chain, type, hook, policy };
    }
  }
  return { tables, chains };
}

/** Rules of a listing made with `-a`: the lines of chain bodies that carry a handle. */
function rulesOf(listing: string): { text: string; handle: number }[] {
  const rules: { text: string; handle: number }[] = [];
  for (const line of listing.split('\n')) {
    const [, text, handle] = /^\t\t(.*?) # handle (\d+)$/.exec(line) ?? [];
    if (text !== undefined) rules.push({ text, handle: Number(handle) });
  }
  return rules;
}

/** A quoted string of nft's grammar; our own texts hold no quotes. */
function commented(rule: string, comment: string): string {
  return `${rule} comment "${comment}"`;
}

function matchText(family: Family, rule: MasqueradeRule): string {
  const ip = NFT_FAMILY[family];
  const mark = `0x${MASQUERADE_MARK.toString(16)}`;
  return [
    rule.marked ? `meta mark & ${mark} == ${mark}` : '',
    rule.source ? `${ip} saddr ${rule.source.not ? '!= ' : ''}${rule.source.prefix}` : '',
    rule.destination ? `${ip} daddr ${rule.destination.not ? '!= ' : ''}${rule.destination.prefix}` : '',
  ]
    .filter((part) => part !== '')
    .join(' ');
}

/** The rules of one family in nft's words, by chain. */
function renderRules(plan: FirewallPlan, family: Family): { masquerade: string[]; forward: string[] } {
  const ip = NFT_FAMILY[family];
  const masquerade = masqueradeRules(plan, family).map((rule) => {
    const verdict = rule.verdict === 'return' ? 'return' : plan.randomFully ? 'masquerade fully-random' : 'masquerade';
    return commented(`${matchText(family, rule)} ${verdict}`, 'podwire masq');
  });
  const forward = forwardRules(plan, family).map((rule) =>
    commented(
      rule.source === undefined ? `${ip} daddr ${rule.destination ?? ''} accept` : `${ip} saddr ${rule.source} accept`,
      'podwire forward',
    ),
  );
  return { masquerade, forward };
}

/** The table of one family as a block of nft's language, or '' when the plan has no rule for it. */
export function renderTable(names: FirewallNames, plan: FirewallPlan, family: Family): string {
  const { masquerade, forward } = renderRules(plan, family);
  if (masquerade.length + forward.length === 0) return '';
  const chain = (name: string, head: string, rules: readonly string[]): string[] =>
    rules.length === 0 ? [] : [`chain ${name} {`, `${head}; policy accept;`, ...rules, '}'];
  return [
    `table ${NFT_FAMILY[family]} ${names.table} {`,
    ...chain('postrouting', `type nat hook postrouting priority ${NAT_PRIORITY}`, masquerade),
    ...chain('forward', 'type filter hook forward priority 0', forward),
    '}',
    '',
  ].join('\n');
}

export class NftManager {
  readonly #runner: Runner;
  readonly #names: FirewallNames;
  /** What was applied last, and how the kernel lists it. */
  #applied: { readonly script: string; readonly families: readonly Family[]; readonly listing: string } | undefined;
  /** The script that somebody undid before it could be listed. */
  #undone: string | undefined;

  constructor(runner: Runner, names: FirewallNames) {
    this.#runner = runner;
    this.#names = names;
  }

  /**
   * Makes the tables what the plan says.
   *
   * @param existing what the host has.
   * @param inForce called when they are, before the kernel is asked how it lists them.
   * @returns what was not as it had been applied, one text each; nothing when all was well or is new.
   * @throws {PodwireError} `COMMAND_FAILED`; the tables are as they were.
   */
  async ensure(plan: FirewallPlan, existing: Pick<NftListing, 'tables'>, inForce?: () => void): Promise<string[]> {
    const blocks = new Map(([4, 6] as const).map((family) => [family, renderTable(this.#names, plan, family)]));
    const script = Array.from(blocks.values()).join('');
    const drift: string[] = [];
    if (this.#applied?.script === script) {
      const { families, listing } = this.#applied;
      if ((await this.#list(families)) === listing) return [];
      for (const family of families) {
        const found = await listTable(this.#runner, NFT_FAMILY[family], this.#names.table);
        if (found === undefined) drift.push(`nft table ${this.#table(family)} was gone`);
        else if (!listing.includes(found)) drift.push(`nft table ${this.#table(family)} was changed`);
      }
      // Somebody may have put back what it was.
      if (drift.length === 0) return [];
    } else if (this.#undone === script) {
      drift.push(`the nft tables ${this.#names.table} were changed while they were written`);
    }
    await this.#replace(blocks, script, existing, inForce);
    return drift;
  }

  async #replace(
    blocks: ReadonlyMap<Family, string>,
    script: string,
    existing: Pick<NftListing, 'tables'>,
    inForce?: () => void,
  ): Promise<void> {
    const commands = Array.from(blocks, ([family, block]) => {
      const name = this.#table(family);
      // Adding what may exist already makes the deletion right in either case.
      if (block !== '') return `add table ${name}\ndelete table ${name}\n${block}`;
      return existing.tables.has(name) ? `delete table ${name}\n` : '';
    }).join('');
    this.#applied = undefined;
    if (commands !== '') await nft(this.#runner, commands);
    inForce?.();
    const families = Array.from(blocks).flatMap(([family, block]) => (block === '' ? [] : [family]));
    const listing = await this.#list(families);
    const wanted = Array.from(script.matchAll(/ comment "/g)).length;
    if (rulesOf(listing).length !== wanted) {
      this.#undone = script;
      throw new PodwireError(
        'COMMAND_FAILED',
        `nft tables ${this.#names.table} are not what was just written: somebody else writes them too`,
      );
    }
    this.#applied = { script, families, listing };
    this.#undone = undefined;
  }

  /** The tables of these families, what is missing left out. */
  async #list(families: readonly Family[]): Promise<string> {
    // One process each: asked for two tables at once, nft 1.0 lists the first without its rules.
    const listings = families.map((family) => listTable(this.#runner, NFT_FAMILY[family], this.#names.table));
    return (await Promise.all(listings)).join('');
  }

  #table(family: Family): string {
    return `${NFT_FAMILY[family]} ${this.#names.table}`;
  }

  /** Names of the tables in place. */
  get where(): string[] {
    return (this.#applied?.families ?? []).map((family) => `nft table ${this.#table(family)}`);
  }
}
