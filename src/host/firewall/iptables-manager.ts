/**
 * The iptables manager: flannel's chains with flannel's rules, order and comments, so that podwire and flanneld find
 * each other's work in place. Where flannel only looks whether each rule is there, the whole chain is compared.
 */
import { PodwireError } from '../../errors.js';
import type { Prefix } from '../../net/prefix.js';
import {
  chainEdits,
  type Iptables,
  isForeignRule,
  type OwnChain,
  renderChainRules,
  type TableName,
} from './iptables.js';
import { COMMENTS, FLANNEL_CHAINS, type FirewallNames } from './names.js';
import type { NftChain } from './nft.js';
import type { FirewallPlan } from './plan.js';

/**
 * The two chains of one agent.
 *
 * @param ours networks whose rules are this agent's, also those of an earlier run; undefined: all rules are.
 */
export function ownChains(
  names: Pick<FirewallNames, 'chains' | 'shared'>,
  rules: { readonly masquerade: readonly string[]; readonly forward: readonly string[] },
  ours: readonly Prefix[] | undefined,
): OwnChain[] {
  const isForeign = (rule: string): boolean => names.shared && ours !== undefined && isForeignRule(rule, ours);
  return [
    {
      table: 'nat',
      hook: 'POSTROUTING',
      name: names.chains.masquerade,
      comment: COMMENTS.masquerade,
      rules: rules.masquerade,
      isForeign,
    },
    {
      table: 'filter',
      hook: 'FORWARD',
      name: names.chains.forward,
      comment: COMMENTS.forward,
      rules: rules.forward,
      isForeign,
    },
  ];
}

/** Chains with flannel's names, whoever made them, without rules of ours. */
export function flannelChainsWithout(ours: readonly Prefix[] | undefined): OwnChain[] {
  return ownChains({ chains: FLANNEL_CHAINS, shared: true }, { masquerade: [], forward: [] }, ours);
}

export interface TableEdits {
  readonly edits: Partial<Record<TableName, string[]>>;
  readonly faults: string[];
}

/**
 * Compares chains with the kernel's.
 *
 * @param existing as {@link Iptables.read}.
 * @throws {PodwireError} `COMMAND_FAILED`.
 */
export async function compareChains(
  iptables: Iptables,
  chains: readonly OwnChain[],
  existing?: readonly NftChain[],
): Promise<TableEdits> {
  const edits: Partial<Record<TableName, string[]>> = {};
  const faults: string[] = [];
  for (const chain of chains) {
    const found = chainEdits(await iptables.read(chain.table, [chain.hook, chain.name], existing), chain);
    if (found.lines.length === 0) continue;
    edits[chain.table] = [...(edits[chain.table] ?? []), ...found.lines];
    faults.push(...found.faults.map((fault) => `${iptables.toString()}: ${fault}`));
  }
  return { edits, faults };
}

export class IptablesManager {
  readonly #names: FirewallNames;
  readonly #tools: readonly Iptables[];
  #applied = '';
  #where: string[] = [];

  /** @param tools one of each family, of one flavour. */
  constructor(names: FirewallNames, tools: readonly Iptables[]) {
    this.#names = names;
    this.#tools = tools;
  }

  /**
   * Makes the chains what the plan says; a family that is right is not written.
   *
   * @param ours networks whose rules are this agent's.
   * @param existing all chains as nft lists them, where it can.
   * @returns what was not as it had been applied; nothing when all was well or is new.
   * @throws {PodwireError} `COMMAND_FAILED`; a family is changed whole or not at all.
   */
  async ensure(plan: FirewallPlan, ours: readonly Prefix[], existing?: readonly NftChain[]): Promise<string[]> {
    const drift: string[] = [];
    const where: string[] = [];
    const wanted: string[] = [];
    for (const tool of this.#tools) {
      const random = plan.randomFully && tool.programs.modern;
      const rules = renderChainRules({ ...plan, randomFully: random }, tool.programs.family);
      const chains = ownChains(this.#names, rules, ours);
      const found = await compareChains(tool, chains, existing);
      if (found.faults.length > 0) {
        drift.push(...found.faults);
        await tool.write(found.edits);
        const after = await compareChains(tool, chains);
        if (after.faults.length > 0) {
          throw new PodwireError(
            'COMMAND_FAILED',
            `${after.faults.join(', ')} right after it was written: somebody else writes it too`,
          );
        }
      }
      wanted.push(...rules.masquerade, ...rules.forward);
      for (const chain of chains) {
        if (chain.rules.length > 0) where.push(`${tool.toString()} ${chain.table} ${chain.name}`);
      }
    }
    const isNew = this.#applied !== wanted.join('\n');
    this.#applied = wanted.join('\n');
    this.#where = where;
    return isNew ? [] : drift;
  }

  /** Where the rules are. */
  get where(): string[] {
    return this.#where;
  }
}
