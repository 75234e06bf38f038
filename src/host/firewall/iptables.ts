/**
 * iptables of one flavour and family: reads a table, works out the lines that differ, and writes them in one
 * `iptables-restore --noflush` transaction. Reading takes no lock; writing waits for it, and happens only when
 * something differs.
 */
import { type Family, Prefix } from '../../net/prefix.js';
import type { Runner } from '../exec.js';
import { FIREWALL_TIMEOUT_MS, type NftChain } from './nft.js';
import { COMMENTS } from './names.js';
import { type FirewallPlan, forwardRules, isMulticastRange, MASQUERADE_MARK, masqueradeRules } from './plan.js';
import { type IptablesPrograms, legacyTables } from './tools.js';

/** Seconds that iptables-restore waits for whoever holds /run/xtables.lock. */
const LOCK_WAIT_S = 10;

export type TableName = 'nat' | 'filter';

export interface IptablesChain {
  /** Of a built-in chain: ACCEPT or DROP. */
  readonly policy: string | undefined;
  /** Rules as iptables-save prints them, without `-A CHAIN`. */
  readonly rules: readonly string[];
}

export type IptablesTable = ReadonlyMap<string, IptablesChain>;

/** Reads what `iptables-save -t TABLE` prints, or `iptables -S CHAIN`. */
export function parseSave(text: string): Map<string, IptablesChain> {
  const chains = new Map<string, { policy: string | undefined; rules: string[] }>();
  for (const line of text.split('\n')) {
    const [, declared, policy] = /^(?::|-[PN] )(\S+) ?(\S*)/.exec(line) ?? [];
    const [, chain, rule] = /^(?:\[\d+:\d+\] )?-A (\S+) ?(.*)$/.exec(line) ?? [];
    if (declared !== undefined) {
      chains.set(declared, { policy: policy === '-' || policy === '' ? undefined : policy, rules: [] });
    } else if (chain !== undefined && rule !== undefined) {
      chains.get(chain)?.rules.push(rule.trimEnd());
    }
  }
  return chains;
}

export class Iptables {
  readonly programs: IptablesPrograms;
  readonly #runner: Runner;

  constructor(programs: IptablesPrograms, runner: Runner) {
    this.programs = programs;
    this.#runner = runner;
  }

  /**
   * A table with its rules; an empty one when the kernel has none of that name, which is not created.
   *
   * @param names the chains that matter. With `existing` (all chains as nft lists them) only those are read where that
   *   takes no lock: a service proxy's thousands of rules are left alone.
   */
  async read(table: TableName, names: readonly string[], existing?: readonly NftChain[]): Promise<IptablesTable> {
    const { flavour, family, command, save } = this.programs;
    if (flavour === 'legacy' && !(await legacyTables(family)).has(table)) return new Map();
    if (flavour === 'nft' && existing !== undefined) {
      const nftFamily = family === 4 ? 'ip' : 'ip6';
      const present = names.filter((name) =>
        existing.some((chain) => chain.family === nftFamily && chain.table === table && chain.name === name),
      );
      const list = (name: string): Promise<string> =>
        this.#runner(command, ['-t', table, '-S', name], { timeoutMs: FIREWALL_TIMEOUT_MS });
      return parseSave((await Promise.all(present.map(list))).join(''));
    }
    return parseSave(await this.#runner(save, ['-t', table], { timeoutMs: FIREWALL_TIMEOUT_MS }));
  }

  /**
   * Writes lines of iptables-restore's language, by table, at once.
   *
   * @throws {PodwireError} `COMMAND_FAILED`; a table is written whole or not at all.
   */
  async write(edits: Readonly<Partial<Record<TableName, readonly string[]>>>): Promise<void> {
    const blocks = Object.entries(edits).filter(([, lines]) => lines.length > 0);
    if (blocks.length === 0) return;
    const input = blocks.map(([table, lines]) => `*${table}\n${lines.join('\n')}\nCOMMIT\n`).join('');
    const wait = this.programs.modern ? [`--wait=${LOCK_WAIT_S}`] : [];
    await this.#runner(this.programs.restore, ['--noflush', ...wait], { input, timeoutMs: FIREWALL_TIMEOUT_MS });
  }

  /** `iptables-nft` or `iptables-legacy` of IPv4 or IPv6, for messages. */
  toString(): string {
    const { flavour, family } = this.programs;
    return `${family === 4 ? 'iptables' : 'ip6tables'}-${flavour}`;
  }
}

/** A chain of ours, and the one jump to it from a built-in chain. */
export interface OwnChain {
  readonly table: TableName;
  readonly hook: string;
  readonly name: string;
  readonly comment: string;
  /** In order; empty when the chain is not wanted. */
  readonly rules: readonly string[];
  /** Whether a rule that stands in the chain is somebody else's and stays, behind ours. */
  readonly isForeign: (rule: string) => boolean;
}

/** flannel's rules of one family as `iptables-save` prints them. */
export function renderChainRules(plan: FirewallPlan, family: Family): { masquerade: string[]; forward: string[] } {
  const mark = `0x${MASQUERADE_MARK.toString(16)}`;
  const address = (option: string, match: { prefix: string; not: boolean } | undefined): string =>
    match === undefined ? '' : `${match.not ? '! ' : ''}${option} ${match.prefix}`;
  const join = (...parts: string[]): string => parts.filter((part) => part !== '').join(' ');
  const masquerade = masqueradeRules(plan, family).map((rule) =>
    join(
      rule.marked ? `-m mark --mark ${mark}/${mark}` : '',
      address('-s', rule.source),
      address('-d', rule.destination),
      `-m comment --comment "${COMMENTS.masquerade}"`,
      rule.verdict === 'return' ? '-j RETURN' : `-j MASQUERADE${plan.randomFully ? ' --random-fully' : ''}`,
    ),
  );
  const forward = forwardRules(plan, family).map((rule) =>
    join(
      rule.source === undefined ? `-d ${rule.destination ?? ''}` : `-s ${rule.source}`,
      `-m comment --comment "${COMMENTS.forward}"`,
      '-j ACCEPT',
    ),
  );
  return { masquerade, forward };
}

/** The networks that a rule speaks of. */
export function prefixesOf(rule: string): Prefix[] {
  return Array.from(rule.matchAll(/(?:^|\s)-[sd] (\S+)/g), ([, text = '']) => text)
    .filter((text) => !isMulticastRange(text))
    .map((text) => Prefix.tryParse(text))
    .filter((prefix) => prefix !== undefined);
}

/** A rule of another daemon in a shared chain: it speaks of networks, and of none of ours. */
export function isForeignRule(rule: string, ours: readonly Prefix[]): boolean {
  const prefixes = prefixesOf(rule);
  return prefixes.length > 0 && !prefixes.some((prefix) => ours.some((own) => own.overlaps(prefix)));
}

/** Whether a rule matches every packet and ends the chain for it. */
export function isFinal(rule: string, targets: readonly string[]): boolean {
  const [, target = ''] =
    /^(?:-m comment --comment (?:"[^"]*"|\S+) )*-j (\S+)(?: --reject-with \S+)?$/.exec(rule) ?? [];
  return targets.includes(target);
}

const DROPS = ['DROP', 'REJECT'];

/** Lines that make the chain what it should be, and what was wrong with it. */
export interface ChainEdits {
  readonly lines: string[];
  /** One text each; empty when nothing was wrong, and for a chain that did not exist before. */
  readonly faults: string[];
}

export function chainEdits(table: IptablesTable, own: OwnChain): ChainEdits {
  const chain = table.get(own.name);
  const hook = table.get(own.hook)?.rules ?? [];
  const jumps = hook.filter((rule) => new RegExp(`-j ${own.name}$`).test(rule));
  const foreign = (chain?.rules ?? []).filter(own.isForeign);
  if (own.rules.length === 0 && foreign.length === 0) return removal(chain, jumps, own);
  const wanted = own.rules.length === 0 ? withoutOurs(chain, own) : [...own.rules, ...foreign];
  const faults: string[] = [];
  const lines: string[] = [];
  if (chain === undefined || !sameList(chain.rules, wanted)) {
    // With --noflush, declaring a chain empties it.
    lines.push(`:${own.name} - [0:0]`, ...wanted.map((rule) => `-A ${own.name} ${rule}`));
    if (chain === undefined) faults.push(`chain ${own.name} was gone`);
    else faults.push(`chain ${own.name} was ${sameSet(chain.rules, wanted) ? 'in another order' : 'changed'}`);
  }
  const jump = `-m comment --comment "${own.comment}" -j ${own.name}`;
  const others = hook.filter((rule) => !jumps.includes(rule));
  const firstDrop = others.findIndex((rule) => isFinal(rule, DROPS));
  const isReached = firstDrop < 0 || hook.indexOf(jump) < hook.indexOf(others[firstDrop] ?? '');
  if (own.rules.length > 0 && !(jumps.length === 1 && jumps[0] === jump && isReached)) {
    lines.push(...jumps.map((rule) => `-D ${own.hook} ${rule}`));
    lines.push(firstDrop < 0 ? `-A ${own.hook} ${jump}` : `-I ${own.hook} ${firstDrop + 1} ${jump}`);
    if (jumps.length === 0) faults.push(`the jump from ${own.hook} to ${own.name} was gone`);
    else faults.push(`the jump from ${own.hook} to ${own.name} was ${jumpFault(jumps, isReached)}`);
  }
  return { lines, faults };
}

function jumpFault(jumps: readonly string[], isReached: boolean): string {
  if (!isReached) return 'behind a rule that drops';
  return jumps.length > 1 ? `there ${jumps.length} times` : 'changed';
}

function removal(chain: IptablesChain | undefined, jumps: readonly string[], own: OwnChain): ChainEdits {
  const lines = jumps.map((rule) => `-D ${own.hook} ${rule}`);
  if (chain !== undefined) lines.push(`:${own.name} - [0:0]`, `-X ${own.name}`);
  return { lines, faults: lines.length === 0 ? [] : [`chain ${own.name}`] };
}

/** What stays of a shared chain when our rules go: the other daemon's, and those that speak of no network. */
function withoutOurs(chain: IptablesChain | undefined, own: OwnChain): string[] {
  return (chain?.rules ?? []).filter((rule) => own.isForeign(rule) || prefixesOf(rule).length === 0);
}

function sameList(left: readonly string[], right: readonly string[]): boolean {
  return left.length === right.length && left.every((item, index) => item === right[index]);
}

function sameSet(left: readonly string[], right: readonly string[]): boolean {
  return sameList([...left].sort(), [...right].sort());
}
