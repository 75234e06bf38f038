/**
 * The host's firewall rules for one agent: masquerading, forward rules and the blackhole of the own subnet, kept in
 * place by whichever manager this host has, whatever others do to them.
 *
 * A plan is applied, then checked again on every event of the kernel that may concern it and once in a period; what is
 * not as it should be is put back, counted and told. A plan that cannot be applied is tried again until it works: the
 * overlay carries packets meanwhile. The rules stay when the agent ends, as flanneld's do, so that pods keep their way
 * out; `podwire cleanup` takes them away.
 */
import { messageOf } from '../../errors.js';
import type { Prefix } from '../../net/prefix.js';
import { Early } from '../early.js';
import type { Runner } from '../exec.js';
import { Admissions } from './admission.js';
import { ensureBlackholes } from './blackhole.js';
import { Iptables, type IptablesTable } from './iptables.js';
import { IptablesManager } from './iptables-manager.js';
import { findLeftovers } from './leftovers.js';
import { FLANNEL_CHAINS, type FirewallNames, firewallNames } from './names.js';
import { listChains, type NftListing, NftManager } from './nft.js';
import type { FirewallPlan } from './plan.js';
import { type ChosenManager, chooseManager, type FirewallTools, findTools, type ManagerChoice } from './tools.js';
import { NftWatch } from './watch.js';

export interface HostPlan extends FirewallPlan {
  /** A blackhole route for each own subnet, behind any bridge's. */
  readonly blackhole: boolean;
}

export interface FirewallNotice {
  readonly level: 'info' | 'warn' | 'error';
  readonly text: string;
  readonly fields: Readonly<Record<string, unknown>>;
}

export interface HostFirewallOptions {
  readonly manager: ManagerChoice;
  /** Of firewallKey: whose rules these are. */
  readonly key: string;
  readonly runner: Runner;
  /** `EnableNFTables` of the network config. Default false. */
  readonly configAsksNft?: boolean;
  /** Networks of this agent's earlier runs: their rules are cleared away. */
  readonly previousNetworks?: readonly Prefix[];
  /** Period of the checks in milliseconds; default 5000. */
  readonly resyncMs?: number;
  /** What findTools says, where that was asked ahead. */
  readonly tools?: Early<FirewallTools>;
  /** Seam for tests, see findTools. */
  readonly findProgram?: (name: string) => Promise<string | undefined>;
  /** One for each change of state, none for a check that finds all well. Must not throw. */
  readonly onNotice: (notice: FirewallNotice) => void;
}

export interface FirewallStats {
  readonly manager: 'nft' | 'iptables-nft' | 'iptables-legacy' | 'none';
  /** Why this manager. */
  readonly why: string;
  /** `off`: no manager, or nothing to do. `failing`: something is missing, see `lastError`; it is tried again. */
  readonly state: 'starting' | 'ok' | 'failing' | 'off';
  readonly lastError?: string;
  readonly masquerade: boolean;
  readonly forward: boolean;
  /** Tables and chains that hold our rules. */
  readonly rules: readonly string[];
  /** Chains of others, which drop forwarded packets, with our accepts in them. */
  readonly admittedIn: readonly string[];
  /** `events`: changes are heard from the kernel at once; `periodic`: found at the next check only. */
  readonly watch: 'events' | 'periodic' | 'off';
  readonly resyncMs: number;
  readonly checks: number;
  /** Checks that found something changed by others, and put it back. */
  readonly repairs: number;
  /** Checks that failed. */
  readonly failures: number;
}

export const DEFAULT_RESYNC_MS = 5_000;

const RETRY_MS = { least: 500, most: 10_000 } as const;
/** Events come in bursts: one transaction is many lines. */
const SETTLE_MS = 10;
/** From this many repairs (or failed ones) in a minute on, somebody is fighting us: then one a second. */
const FIGHT = { repairs: 20, windowMs: 60_000, pauseMs: 1_000 } as const;

interface Outcome {
  readonly drift: readonly string[];
  readonly problems: readonly string[];
}

export class HostFirewall {
  readonly #options: HostFirewallOptions;
  readonly #names: FirewallNames;
  readonly #tools: FirewallTools;
  readonly #chosen: ChosenManager;
  readonly #manager: NftManager | IptablesManager | undefined;
  readonly #admissions: Admissions;
  readonly #resyncMs: number;
  readonly #listing: Early<NftListing> | undefined;
  #watch: NftWatch | undefined;
  #hearsEvents = false;
  /** Events were lost, and that was told. */
  #isDeaf = false;
  #plan: HostPlan | undefined;
  /** Who waits for the plan to be in force. */
  #inForce: (() => void) | undefined;
  #isCleared = false;
  #isTold = false;
  #admittedIn: readonly string[] = [];
  #lastError: string | undefined;
  #counts = { checks: 0, repairs: 0, failures: 0 };
  #repairTimes: number[] = [];
  #isFight = false;
  #retries = 0;
  #timer: NodeJS.Timeout | undefined;
  #eventTimer: NodeJS.Timeout | undefined;
  #work: Promise<unknown> = Promise.resolve();
  #closed = false;

  private constructor(options: HostFirewallOptions, tools: FirewallTools, chosen: ChosenManager) {
    const { runner, key } = options;
    this.#options = options;
    this.#names = firewallNames(key);
    this.#tools = tools;
    this.#chosen = chosen;
    this.#resyncMs = options.resyncMs ?? DEFAULT_RESYNC_MS;
    this.#admissions = new Admissions(runner, this.#names, tools);
    if (chosen.manager !== 'none' && tools.nft.usable) this.#listing = new Early(() => listChains(runner));
    if (chosen.manager === 'nft') {
      this.#manager = new NftManager(runner, this.#names);
    } else if (chosen.manager === 'iptables') {
      const programs = tools.iptables.filter(({ flavour }) => flavour === chosen.flavour);
      this.#manager = new IptablesManager(
        this.#names,
        programs.map((program) => new Iptables(program, runner)),
      );
    }
  }

  /**
   * Finds out what this host has; nothing is changed yet. A host without any firewall program gets a firewall that does
   * nothing and says so.
   */
  static async open(options: HostFirewallOptions): Promise<HostFirewall> {
    const { manager, runner } = options;
    const none: FirewallTools = { nft: { usable: false, reason: 'not asked for' }, iptables: [] };
    const tools = manager === 'none' ? none : await (options.tools?.take() ?? findTools(runner, options));
    const mayBeIptables = manager === 'iptables' || (manager === 'auto' && !tools.nft.usable);
    const isLegacy = mayBeIptables && (await legacyIsInUse(runner, tools));
    const chosen = chooseManager(manager, options.configAsksNft ?? false, tools, isLegacy);
    if (chosen.problem !== undefined) options.onNotice({ level: 'error', text: chosen.problem, fields: {} });
    return new HostFirewall(options, tools, chosen);
  }

  /**
   * Puts the plan in force in place of the one before. Never rejects: what cannot be done is told and tried again.
   *
   * @param inForce called when it is, before that is verified and what it replaces is cleared away; not when it fails.
   * @returns whether all of it is in place.
   */
  async apply(plan: HostPlan, inForce?: () => void): Promise<boolean> {
    if (this.#closed) return false;
    this.#plan = plan;
    this.#inForce = inForce;
    this.#isTold = false;
    this.#isCleared = false;
    const isInPlace = await this.#check();
    if (hasRules(plan)) this.#listen();
    return isInPlace;
  }

  /** After the rules, which others wait for; what changes in between is found by the check when events are heard. */
  #listen(): void {
    if (this.#closed || this.#manager === undefined || !this.#tools.nft.usable) return;
    this.#watch ??= new NftWatch({
      runner: this.#options.runner,
      onEvent: (line) => this.#onEvent(line),
      onState: (state) => this.#onWatchState(state),
    });
  }

  stats(): FirewallStats {
    const { manager, flavour, why } = this.#chosen;
    const plan = this.#plan;
    const isActive = manager !== 'none' && plan !== undefined && (plan.masquerade || plan.forward);
    return {
      manager: manager === 'iptables' ? `iptables-${flavour ?? 'nft'}` : manager,
      why,
      state: this.#state(isActive),
      ...(this.#lastError === undefined ? {} : { lastError: this.#lastError }),
      masquerade: isActive && plan.masquerade,
      forward: isActive && plan.forward,
      rules: this.#manager?.where ?? [],
      admittedIn: this.#admittedIn,
      watch: isActive ? (this.#hearsEvents ? 'events' : 'periodic') : 'off',
      resyncMs: this.#resyncMs,
      ...this.#counts,
    };
  }

  #state(isActive: boolean): FirewallStats['state'] {
    if (this.#lastError !== undefined) return 'failing';
    if (this.#plan === undefined) return 'starting';
    return isActive || this.#plan.blackhole ? 'ok' : 'off';
  }

  /** Stops watching. The rules stay; the blackhole routes go. May be called twice. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    clearTimeout(this.#timer);
    clearTimeout(this.#eventTimer);
    await Promise.all([this.#work, this.#watch?.close()]);
    if (this.#plan?.blackhole) {
      await ensureBlackholes(this.#options.runner, this.#plan.networks, []).catch((error: unknown) => {
        this.#notice('warn', `the blackhole route stays: ${messageOf(error)}`);
      });
    }
  }

  /** One check after the other. */
  #check(): Promise<boolean> {
    const next = this.#work.then(() => this.#checkNow());
    this.#work = next;
    return next;
  }

  async #checkNow(): Promise<boolean> {
    const plan = this.#plan;
    if (plan === undefined || this.#closed) return false;
    clearTimeout(this.#timer);
    this.#counts.checks++;
    let outcome: Outcome;
    try {
      outcome = await this.#reconcile(plan);
    } catch (error) {
      outcome = { drift: [], problems: [messageOf(error)] };
    }
    // A newer plan has come meanwhile, and its check is next: this outcome says nothing about it.
    if (plan !== this.#plan) return false;
    this.#tell(outcome);
    this.#schedule(outcome.problems.length > 0);
    return outcome.problems.length === 0;
  }

  /** Blackhole routes need no turn among the rules; those of an earlier run go when the rules are in force. */
  async #reconcile(plan: HostPlan): Promise<Outcome> {
    const setting = plan.blackhole ? this.#ensureBlackholes(plan) : undefined;
    // Both are over when this is, or the next check would meet one of this.
    const [rules, blackholes] = await Promise.allSettled([this.#ensureRules(plan), setting]);
    if (rules.status === 'rejected') throw rules.reason;
    if (blackholes.status === 'rejected') throw blackholes.reason;
    const gone = blackholes.value ?? (await this.#ensureBlackholes(plan));
    return { ...rules.value, drift: [...rules.value.drift, ...gone] };
  }

  async #ensureRules(plan: HostPlan): Promise<Outcome> {
    const { runner } = this.#options;
    const drift: string[] = [];
    const problems: string[] = [];
    if (this.#manager !== undefined) {
      const { nft } = this.#tools;
      const listing = nft.usable ? await (this.#listing?.take() ?? listChains(runner)) : undefined;
      const admission = await this.#admissions
        .ensure(plan, this.#chosen.flavour, listing?.chains)
        // Our own rules are wanted all the same.
        .catch((error: unknown) => ({ places: this.#admittedIn, drift: [], problems: [messageOf(error)] }));
      drift.push(...admission.drift);
      problems.push(...admission.problems);
      this.#admitted(admission.places);
      const manager = this.#manager;
      if (manager instanceof IptablesManager) {
        drift.push(...(await manager.ensure(plan, this.#ourNetworks(plan), listing?.chains)));
      } else if (listing !== undefined) {
        const isRandom = plan.randomFully && nft.usable && nft.randomFully;
        const inForce = (): void => (plan === this.#plan ? this.#inForce?.() : undefined);
        drift.push(...(await manager.ensure({ ...plan, randomFully: isRandom }, listing, inForce)));
      }
      // The new rules are in force: only now may what they replace go.
      if (!this.#isCleared) {
        const stuck = await this.#clear(plan, listing);
        this.#isCleared = stuck.length === 0 && plan === this.#plan;
        problems.push(...stuck);
      }
    }
    return { drift, problems };
  }

  /** @returns which were gone, one text each. */
  async #ensureBlackholes({ blackhole, networks, subnets }: HostPlan): Promise<string[]> {
    const { runner } = this.#options;
    const isKnown = this.#isTold;
    if (!blackhole) {
      if (!isKnown) await ensureBlackholes(runner, networks, []);
      return [];
    }
    const added = await ensureBlackholes(runner, networks, subnets);
    return isKnown ? added.map((subnet) => `the blackhole route of ${subnet.toString()} was gone`) : [];
  }

  /** Removes what another manager, an earlier run or flanneld left for our networks. */
  async #clear(plan: HostPlan, listing: NftListing | undefined): Promise<string[]> {
    const { manager } = this.stats();
    const leftovers = await findLeftovers({
      runner: this.#options.runner,
      names: this.#names,
      tools: this.#tools,
      networks: this.#ourNetworks(plan),
      keep: manager === 'none' ? undefined : manager,
      listing,
    });
    const problems: string[] = [];
    for (const { what, remove } of leftovers) {
      try {
        await remove();
        this.#notice('info', 'removed firewall rules that our own replace', { rules: what });
      } catch (error) {
        problems.push(`cannot remove ${what}: ${messageOf(error)}`);
      }
    }
    return problems;
  }

  #ourNetworks(plan: HostPlan): Prefix[] {
    return [...plan.networks, ...(this.#options.previousNetworks ?? [])];
  }

  #admitted(places: readonly string[]): void {
    const added = places.filter((place) => !this.#admittedIn.includes(place));
    if (added.length > 0) {
      this.#notice('info', "another firewall drops forwarded packets: the pods' are accepted there", {
        chain: added.join(', '),
      });
    }
    this.#admittedIn = places;
  }

  #tell({ drift, problems }: Outcome): void {
    const problem = problems.length === 0 ? undefined : problems.join('; ');
    if (problem === undefined) {
      if (!this.#isTold) this.#tellInPlace();
      else if (this.#lastError !== undefined) this.#notice('info', 'the firewall rules are in place again');
      this.#isTold = true;
    } else {
      this.#counts.failures++;
      if (problem !== this.#lastError) {
        this.#notice('error', `firewall rules are missing, trying again: ${problem}`);
      }
    }
    this.#lastError = problem;
    if (drift.length > 0) {
      this.#counts.repairs++;
      this.#notice('warn', 'somebody changed the firewall rules, they are put back', { what: drift.join('; ') });
    }
    this.#judge(drift.length > 0 || problem !== undefined);
  }

  /** Two who put back what the other removes would keep the host busy. */
  #judge(hadWork: boolean): void {
    const now = performance.now();
    const recent = this.#repairTimes.filter((time) => now - time < FIGHT.windowMs);
    this.#repairTimes = hadWork ? [...recent, now].slice(-FIGHT.repairs) : recent;
    const isFight = this.#repairTimes.length >= FIGHT.repairs;
    if (isFight && !this.#isFight) {
      this.#notice('error', 'somebody keeps changing the firewall rules: from now on they are put back once a second');
    }
    this.#isFight = isFight;
  }

  #tellInPlace(): void {
    const plan = this.#plan;
    if (this.#manager === undefined || plan === undefined) return;
    const { manager, why, state, masquerade, forward, rules } = this.stats();
    if (state === 'off') return;
    this.#notice('info', 'firewall rules are in place', { manager, why, masquerade, forward, rules: rules.join(', ') });
    const { nft } = this.#tools;
    if (masquerade && plan.randomFully && manager === 'nft' && nft.usable && !nft.randomFully) {
      this.#notice('warn', 'this nft cannot choose source ports at random (masquerade without fully-random)');
    }
  }

  #schedule(failed: boolean): void {
    if (this.#closed) return;
    this.#retries = failed ? this.#retries + 1 : 0;
    // What somebody else undoes is put back at the pace of a fight, also when he was faster than our own look at it.
    const retryMs = this.#isFight ? FIGHT.pauseMs : Math.min(RETRY_MS.most, RETRY_MS.least * 2 ** (this.#retries - 1));
    const periodMs = this.#resyncMs * (0.9 + Math.random() * 0.2);
    this.#timer = setTimeout(() => void this.#check(), failed ? retryMs : periodMs);
    this.#timer.unref();
  }

  #onEvent(line: string): void {
    if (this.#closed || this.#eventTimer !== undefined || !this.#concerns(line)) return;
    this.#eventTimer = setTimeout(
      () => {
        this.#eventTimer = undefined;
        void this.#check();
      },
      this.#isFight ? FIGHT.pauseMs : SETTLE_MS,
    );
  }

  /** Whether an event may have touched our rules or a chain that drops forwarded packets. */
  #concerns(line: string): boolean {
    return (
      line.includes(this.#names.table) ||
      line.includes(FLANNEL_CHAINS.masquerade) ||
      line.includes(FLANNEL_CHAINS.forward) ||
      line.includes(' hook forward ') ||
      / (FORWARD|DOCKER-USER|POSTROUTING)( |$)/.test(line) ||
      this.#admittedIn.some((place) => place.startsWith('nft ') && line.includes(place.slice('nft '.length)))
    );
  }

  #onWatchState({ live, reason }: { readonly live: boolean; readonly reason?: string }): void {
    this.#hearsEvents = live;
    if (!live) {
      this.#isDeaf = true;
      this.#notice('warn', "the kernel's firewall events are lost: changes are found by the periodic check only", {
        reason: reason ?? '',
      });
      return;
    }
    if (this.#isDeaf) this.#notice('info', "the kernel's firewall events are heard again");
    this.#isDeaf = false;
    // What happened before is known only now.
    void this.#check();
  }

  #notice(level: FirewallNotice['level'], text: string, fields: FirewallNotice['fields'] = {}): void {
    this.#options.onNotice({ level, text, fields });
  }
}

function hasRules(plan: FirewallPlan): boolean {
  return plan.masquerade || plan.forward;
}

/** Whether somebody else keeps rules in the legacy tables, and nobody in those of iptables-nft. */
async function legacyIsInUse(runner: Runner, tools: FirewallTools): Promise<boolean> {
  const isInUse = async (flavour: 'legacy' | 'nft'): Promise<boolean> => {
    for (const programs of tools.iptables.filter((tool) => tool.flavour === flavour && tool.family === 4)) {
      const iptables = new Iptables(programs, runner);
      for (const table of ['nat', 'filter'] as const) {
        const chains = await iptables.read(table, []).catch((): IptablesTable => new Map());
        for (const { rules, policy } of chains.values()) {
          if (policy === 'DROP' || rules.some((rule) => !rule.includes('FLANNEL-') && !rule.includes('flanneld '))) {
            return true;
          }
        }
      }
    }
    return false;
  };
  return (await isInUse('legacy')) && !(await isInUse('nft'));
}
