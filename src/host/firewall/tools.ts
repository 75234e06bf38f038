/**
 * Which firewall programs this host has, which of them work, and which manager podwire uses.
 */
import { accessSync, constants, existsSync, realpathSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { messageOf } from '../../errors.js';
import type { Family } from '../../net/prefix.js';
import type { Runner } from '../exec.js';

export type Flavour = 'nft' | 'legacy';

/** One way to iptables: a flavour of the kernel side and a family. */
export interface IptablesPrograms {
  readonly flavour: Flavour;
  readonly family: Family;
  /** `iptables-nft`, `ip6tables-legacy`, or the plain name where only that exists. */
  readonly command: string;
  readonly save: string;
  readonly restore: string;
  /** `--random-fully` and `iptables-restore --wait` came with 1.6.2. */
  readonly modern: boolean;
}

export interface FirewallTools {
  readonly nft:
    { readonly usable: true; readonly randomFully: boolean } | { readonly usable: false; readonly reason: string };
  /** In order of preference: the flavour that the host's own `iptables` has comes first. */
  readonly iptables: readonly IptablesPrograms[];
}

type FindProgram = (name: string) => Promise<string | undefined>;

export interface ToolSeams {
  /**
   * The file of a program that can be run, symbolic links followed, or undefined. Default: looks through PATH and the
   * sbin directories.
   */
  readonly findProgram?: FindProgram;
}

/** Finds the programs and tries nft out, without changing anything. */
export async function findTools(runner: Runner, seams: ToolSeams = {}): Promise<FirewallTools> {
  const findProgram = seams.findProgram ?? findOnPath;
  const [nft, iptables] = await Promise.all([
    probeNft(runner, findProgram),
    Promise.all(([4, 6] as const).map((family) => findIptables(runner, findProgram, family))),
  ]);
  return { nft, iptables: iptables.flat() };
}

/** A check (`nft -c`) goes all the way to the kernel, but nothing is committed. */
async function probeNft(runner: Runner, findProgram: FindProgram): Promise<FirewallTools['nft']> {
  if ((await findProgram('nft')) === undefined) return { usable: false, reason: 'nft is not installed' };
  const attempt = (statement: string): Promise<string> =>
    runner('nft', ['-c', '-f', '-'], {
      input: `table ip podwire-probe {\nchain c {\ntype nat hook postrouting priority 101\n${statement}\n}\n}\n`,
    });
  try {
    await attempt('masquerade fully-random');
    return { usable: true, randomFully: true };
  } catch {
    try {
      await attempt('masquerade');
      return { usable: true, randomFully: false };
    } catch (error) {
      return { usable: false, reason: messageOf(error) };
    }
  }
}

async function findIptables(runner: Runner, findProgram: FindProgram, family: Family): Promise<IptablesPrograms[]> {
  const base = family === 4 ? 'iptables' : 'ip6tables';
  const inspect = async (command: string): Promise<IptablesPrograms | undefined> => {
    const [save, restore] = [`${command}-save`, `${command}-restore`];
    const files = await Promise.all([command, save, restore].map((name) => findProgram(name)));
    if (files.includes(undefined)) return undefined;
    const kind = kindOfFile(files[0] ?? '') ?? kindOfVersion(await runner(command, ['--version']).catch(() => ''));
    return kind === undefined ? undefined : { ...kind, family, command, save, restore };
  };
  const [plain, ...named] = await Promise.all([base, `${base}-nft`, `${base}-legacy`].map(inspect));
  const all = named.filter((tool) => tool !== undefined);
  if (plain === undefined) return all;
  // The flavour's own name goes on meaning the same when somebody switches the alternatives.
  const preferred = all.find((tool) => tool.flavour === plain.flavour) ?? plain;
  return [preferred, ...all.filter((tool) => tool.flavour !== plain.flavour)];
}

interface IptablesKind {
  readonly flavour: Flavour;
  readonly modern: boolean;
}

/** Since 1.8, when there came to be two flavours, all commands of one are links to one program. */
function kindOfFile(file: string): IptablesKind | undefined {
  const [, flavour] = /\/xtables-(nft|legacy)-multi$/.exec(file) ?? [];
  return flavour === 'nft' || flavour === 'legacy' ? { flavour, modern: true } : undefined;
}

/** `iptables v1.8.9 (nf_tables)`; before 1.8 there was nothing but legacy, and no brackets. */
function kindOfVersion(text: string): IptablesKind | undefined {
  const [, major, minor, patch, backend] = /v(\d+)\.(\d+)(?:\.(\d+))?\S*(?: \((\w+)\))?/.exec(text) ?? [];
  if (major === undefined) return undefined;
  const number = Number(major) * 1e6 + Number(minor) * 1e3 + Number(patch ?? 0);
  return { flavour: backend === 'nf_tables' ? 'nft' : 'legacy', modern: number >= 1_006_002 };
}

/** Synchronous: most directories have most programs not, and a start asks for a dozen. */
async function findOnPath(name: string): Promise<string | undefined> {
  const directories = [...(process.env['PATH'] ?? '').split(':'), '/usr/sbin', '/sbin', '/usr/bin', '/bin'];
  for (const directory of directories) {
    if (directory === '') continue;
    const path = join(directory, name);
    if (!existsSync(path)) continue;
    try {
      accessSync(path, constants.X_OK);
      return realpathSync.native(path);
    } catch {
      // Not ours to run, or gone meanwhile.
    }
  }
  return undefined;
}

/**
 * Names of the legacy tables that exist in this network namespace. Asking `iptables-legacy-save` for any other table
 * would create it, and a host with both kinds of tables is a host that nobody understands.
 */
export async function legacyTables(family: Family): Promise<ReadonlySet<string>> {
  const path = family === 4 ? '/proc/self/net/ip_tables_names' : '/proc/self/net/ip6_tables_names';
  const text = await readFile(path, 'utf8').catch(() => '');
  return new Set(text.split('\n').filter((name) => name !== ''));
}

export type ManagerChoice = 'auto' | 'nft' | 'iptables' | 'none';

export interface ChosenManager {
  readonly manager: 'nft' | 'iptables' | 'none';
  /** Which iptables, when that is the manager. */
  readonly flavour?: Flavour;
  readonly why: string;
  /** What the operator asked for cannot be had; one line. */
  readonly problem?: string;
}

/**
 * @param requested by the operator.
 * @param configAsksNft `EnableNFTables` of the network config; false says nothing, because flannel writes it always.
 * @param legacyInUse the host's legacy tables hold rules of somebody.
 */
export function chooseManager(
  requested: ManagerChoice,
  configAsksNft: boolean,
  tools: FirewallTools,
  legacyInUse: boolean,
): ChosenManager {
  if (requested === 'none') return { manager: 'none', why: 'asked for' };
  const flavours = new Set(tools.iptables.map(({ flavour }) => flavour));
  const [first] = flavours;
  const iptables = (why: string): ChosenManager => {
    const flavour = legacyInUse && flavours.has('legacy') ? 'legacy' : first;
    const detail =
      flavour === first ? "the flavour of the host's iptables" : "the host's rules are in the legacy tables";
    return { manager: 'iptables', ...(flavour === undefined ? {} : { flavour }), why: `${why}; ${detail}` };
  };
  const missing = (what: string): ChosenManager => ({
    manager: 'none',
    why: 'no working program',
    problem: `${what}: no masquerading and no forward rules by podwire (install nftables or iptables, or give --firewall none)`,
  });
  const reason = tools.nft.usable ? '' : tools.nft.reason;
  if (requested === 'iptables') {
    return first === undefined ? missing('--firewall iptables, but iptables is not installed') : iptables('asked for');
  }
  if (tools.nft.usable) {
    if (requested === 'nft') return { manager: 'nft', why: 'asked for' };
    return { manager: 'nft', why: configAsksNft ? 'EnableNFTables in the network config' : 'nft works here' };
  }
  if (requested === 'nft') return missing(`--firewall nft, but nft does not work (${reason})`);
  if (first === undefined) return missing(`nft does not work (${reason}) and iptables is not installed`);
  const chosen = iptables(`nft does not work (${reason})`);
  return configAsksNft
    ? { ...chosen, problem: `EnableNFTables is set, but nft does not work (${reason}): using iptables` }
    : chosen;
}
