/**
 * Pods' packets beside somebody else's firewall: an accept in our own chain does not save a packet that another chain
 * of the FORWARD hook drops. docker's policy DROP is the usual one; it stands in the legacy tables, in those of
 * iptables-nft, or in a table of nft's own.
 *
 * Where such a chain is found, the two accepts of our network go into it (into DOCKER-USER where there is one, which
 * docker leaves to others), in front of the first rule that would drop everything. They carry our comment, go when
 * nothing drops any more, and are put back like all our rules.
 */
import { messageOf } from '../../errors.js';
import type { Family } from '../../net/prefix.js';
import type { Runner } from '../exec.js';
import { Iptables, type IptablesTable, isFinal } from './iptables.js';
import { FLANNEL_TABLES, type FirewallNames } from './names.js';
import { listRules, nft, type NftChain } from './nft.js';
import { type FirewallPlan, forwardRules } from './plan.js';
import type { FirewallTools, Flavour } from './tools.js';

const DOCKER_CHAIN = 'DOCKER-USER';

export interface AdmissionResult {
  /** Chains that hold our accepts now. */
  readonly places: readonly string[];
  /** Chains that held them before and did not any more. */
  readonly drift: readonly string[];
  /** What could not be done; one line each. */
  readonly problems: readonly string[];
}

/** One chain to change, and how. */
interface Admission {
  /** For people: `iptables-legacy DOCKER-USER`. Undefined when there is nothing to admit there. */
  readonly place: string | undefined;
  readonly write: (() => Promise<void>) | undefined;
}

export class Admissions {
  readonly #runner: Runner;
  readonly #names: FirewallNames;
  readonly #tools: FirewallTools;
  #places: readonly string[] = [];
  #plan = '';

  constructor(runner: Runner, names: FirewallNames, tools: FirewallTools) {
    this.#runner = runner;
    this.#names = names;
    this.#tools = tools;
  }

  /**
   * @param managed the flavour whose FORWARD chain already jumps to a chain of ours.
   * @param chains all chains as nft lists them; undefined where it cannot.
   * @throws {PodwireError} `COMMAND_FAILED` when the host's chains cannot be read.
   */
  async ensure(
    plan: FirewallPlan,
    managed: Flavour | undefined,
    chains: readonly NftChain[] | undefined,
  ): Promise<AdmissionResult> {
    const wanted = JSON.stringify(([4, 6] as const).map((family) => forwardRules(plan, family)));
    const isSame = this.#plan === wanted;
    const places: string[] = [];
    const drift: string[] = [];
    const problems: string[] = [];
    for (const { place, write } of await this.#find(plan, managed, chains)) {
      try {
        await write?.();
        if (place !== undefined) places.push(place);
        if (place !== undefined && write !== undefined && isSame && this.#places.includes(place)) {
          drift.push(`our accepts in ${place} were gone or out of place`);
        }
      } catch (error) {
        problems.push(`cannot write to ${place ?? 'a chain'}: ${messageOf(error)}`);
      }
    }
    this.#plan = wanted;
    this.#places = places;
    return { places, drift, problems };
  }

  /** What a plan without forward rules would remove: places and their removal. */
  async leftovers(
    chains: readonly NftChain[] | undefined,
  ): Promise<{ readonly what: string; readonly remove: () => Promise<void> }[]> {
    const nothing = { networks: [], subnets: [], masquerade: false, forward: false, randomFully: false };
    return (await this.#find(nothing, undefined, chains, true)).flatMap(({ place, write }) =>
      write === undefined ? [] : [{ what: `accepts in ${place ?? 'a chain'}`, remove: write }],
    );
  }

  async #find(
    plan: FirewallPlan,
    managed: Flavour | undefined,
    chains: readonly NftChain[] | undefined,
    nameAlways = false,
  ): Promise<Admission[]> {
    const found: Admission[] = [];
    const byIptables = new Set<string>();
    for (const programs of this.#tools.iptables) {
      const { flavour, family } = programs;
      if (flavour === 'nft') {
        const table = family === 4 ? 'ip' : 'ip6';
        byIptables.add(`${table} filter`);
        // nft has told that there is no such chain: no need to ask.
        if (chains !== undefined && !chains.some((chain) => isIptablesForward(chain, table))) continue;
      }
      const rules = flavour === managed ? [] : forwardRules(plan, family);
      const iptables = new Iptables(programs, this.#runner);
      found.push(await this.#inIptables(iptables, rules.map(iptablesMatch), chains, nameAlways));
    }
    for (const chain of chains ?? []) {
      if (!this.#isNative(chain) || byIptables.has(`${chain.family} ${chain.table}`)) continue;
      found.push(await this.#inNft(chain, plan, nameAlways));
    }
    return found;
  }

  /** A foreign chain of nft that sees forwarded IP packets. */
  #isNative(chain: NftChain): boolean {
    return (
      chain.hook === 'forward' &&
      chain.type === 'filter' &&
      ['ip', 'ip6', 'inet'].includes(chain.family) &&
      !chain.table.startsWith('podwire-') &&
      !FLANNEL_TABLES.some(({ table }) => table === chain.table)
    );
  }

  async #inIptables(
    iptables: Iptables,
    matches: readonly string[],
    chains: readonly NftChain[] | undefined,
    nameAlways: boolean,
  ): Promise<Admission> {
    const table = await iptables.read('filter', ['FORWARD', DOCKER_CHAIN], chains);
    const { target, lines } = iptablesAdmission(table, matches, this.#names.admission);
    const isNeeded = target !== undefined && matches.length > 0;
    return {
      place: isNeeded || nameAlways ? `${iptables.toString()} ${target ?? 'filter'}` : undefined,
      write: lines.length === 0 ? undefined : () => iptables.write({ filter: lines }),
    };
  }

  async #inNft(chain: NftChain, plan: FirewallPlan, nameAlways: boolean): Promise<Admission> {
    const rules = (await listRules(this.#runner, chain)) ?? [];
    const matches = nftFamilies(chain.family).flatMap((family) =>
      forwardRules(plan, family).map((rule) => {
        const ip = family === 4 ? 'ip' : 'ip6';
        return rule.source === undefined ? `${ip} daddr ${rule.destination ?? ''}` : `${ip} saddr ${rule.source}`;
      }),
    );
    const commands = nftAdmission(chain, rules, matches, this.#names.admission);
    const isNeeded = matches.length > 0 && drops(chain, rules);
    return {
      place: isNeeded || nameAlways ? `nft ${chain.family} ${chain.table} ${chain.name}` : undefined,
      write: commands.length === 0 ? undefined : async () => void (await nft(this.#runner, commands.join(''))),
    };
  }
}

function isIptablesForward(chain: NftChain, family: string): boolean {
  return chain.family === family && chain.table === 'filter' && chain.name === 'FORWARD';
}

function iptablesMatch(rule: { readonly source?: string; readonly destination?: string }): string {
  return rule.source === undefined ? `-d ${rule.destination ?? ''}` : `-s ${rule.source}`;
}

function nftFamilies(family: string): Family[] {
  if (family === 'inet') return [4, 6];
  return family === 'ip' ? [4] : [6];
}

/**
 * What to change in a filter table of iptables.
 *
 * @param matches of the accepts that are wanted if the FORWARD chain drops.
 * @returns the chain that the accepts belong into, if any, and lines for iptables-restore.
 */
export function iptablesAdmission(
  table: IptablesTable,
  matches: readonly string[],
  comment: string,
): { readonly target: string | undefined; readonly lines: string[] } {
  const forward = table.get('FORWARD');
  const isDropping =
    forward !== undefined &&
    (forward.policy === 'DROP' || forward.rules.some((rule) => isFinal(rule, ['DROP', 'REJECT'])));
  const isDocker = table.has(DOCKER_CHAIN) && forward?.rules.some((rule) => isFinal(rule, [DOCKER_CHAIN])) === true;
  const target = isDropping ? (isDocker ? DOCKER_CHAIN : 'FORWARD') : undefined;
  const mark = `-m comment --comment "${comment}"`;
  const wanted = target === undefined ? [] : matches.map((match) => `${match} ${mark} -j ACCEPT`);
  const present = Array.from(table, ([chain, { rules }]) =>
    rules.filter((rule) => rule.includes(mark)).map((rule) => ({ chain, rule })),
  ).flat();
  const ends = ['DROP', 'REJECT', 'RETURN', 'ACCEPT'];
  const rules = (target === undefined ? undefined : table.get(target)?.rules) ?? [];
  const end = rules.findIndex((rule) => isFinal(rule, ends));
  const isRight =
    present.length === wanted.length &&
    wanted.every((rule) => {
      const at = rules.indexOf(rule);
      return at >= 0 && (end < 0 || at < end);
    });
  if (isRight) return { target, lines: [] };
  const others = rules.filter((rule) => !rule.includes(mark));
  const position = others.findIndex((rule) => isFinal(rule, ends));
  return {
    target,
    lines: [
      ...present.map(({ chain, rule }) => `-D ${chain} ${rule}`),
      ...wanted.map((rule, index) =>
        position < 0 ? `-A ${target ?? ''} ${rule}` : `-I ${target ?? ''} ${position + index + 1} ${rule}`,
      ),
    ],
  };
}

interface ListedRule {
  readonly text: string;
  readonly handle: number;
}

/** Whether the text of a rule is nothing but one of these verdicts, logging and counting aside. */
function isFinalNft(text: string, verdicts: RegExp): boolean {
  const bare = text
    .replace(/comment "[^"]*"/, '')
    .replace(/counter( packets \d+ bytes \d+)?/, '')
    .replace(/log( (prefix "[^"]*"|(level|flags|group|snaplen|queue-threshold) \S+))*/, '')
    .trim();
  return verdicts.test(bare);
}

function drops(chain: NftChain, rules: readonly ListedRule[]): boolean {
  return chain.policy === 'drop' || rules.some(({ text }) => isFinalNft(text, /^(drop|reject( with .*)?)$/));
}

/** The commands that put the accepts into a chain of nft, or take them out. */
export function nftAdmission(
  chain: NftChain,
  rules: readonly ListedRule[],
  matches: readonly string[],
  comment: string,
): string[] {
  const name = `${chain.family} ${chain.table} ${chain.name}`;
  const mark = `comment "${comment}"`;
  const wanted = drops(chain, rules) ? matches.map((match) => `${match} accept ${mark}`) : [];
  const present = rules.filter(({ text }) => text.includes(mark));
  const isEnd = ({ text }: ListedRule): boolean =>
    isFinalNft(text, /^(drop|reject( with .*)?|return|accept|queue.*)$/) && !text.includes(mark);
  const end = rules.findIndex(isEnd);
  const isRight =
    present.length === wanted.length &&
    wanted.every((text) => {
      const at = rules.findIndex((rule) => rule.text === text);
      return at >= 0 && (end < 0 || at < end);
    });
  if (isRight) return [];
  const before = rules[end];
  return [
    ...present.map(({ handle }) => `delete rule ${name} handle ${handle}\n`),
    ...wanted.map((text) =>
      before === undefined ? `add rule ${name} ${text}\n` : `insert rule ${name} position ${before.handle} ${text}\n`,
    ),
  ];
}
