/**
 * Makes the host as a {@link DesiredHost} says, with the fewest changes: one pass reads what the kernel has (a handful
 * of processes), compares, and writes the differences through `ip -batch` and `bridge -batch`.
 *
 * What already is as it should be is not touched, and what is already gone needs no removal. A change that the kernel
 * refuses does not keep the others from being made.
 */
import { messageOf } from '../errors.js';
import type { Family } from '../net/prefix.js';
import type { Change, DesiredHost } from './desired.js';
import { differences, familiesWithGaps, routeKey } from './differences.js';
import type { Runner } from './exec.js';
import { readAllRoutes, readHostFacts } from './host-facts.js';
import { type KernelRoute, ROUTE_PROTOCOL } from './routes.js';

export interface Reconciliation {
  /** Made, in order. */
  readonly made: readonly Change[];
  /** Refused by the kernel, or impossible. The next call tries them again. */
  readonly failed: readonly { readonly change: Change; readonly reason: string }[];
  /** Not tried because `allow` said no. */
  readonly held: readonly Change[];
}

export interface ReconcileOptions {
  /** Asked for each change before any is made; default: all are. */
  readonly allow?: (change: Change) => boolean;
}

/** After a batch that failed, at most this many changes are tried one by one, to find out which are refused and why. */
const SINGLY = 16;
/** A full table of 5,000 peers takes well under a second on an idle host. */
const BATCH_TIMEOUT_MS = 30_000;
/** Looks at most; each but the first follows changes that may have undone something else. */
const ROUNDS = 4;

/**
 * Runs until the host is as desired, which most often takes one round. Two calls for the same things must not run at
 * the same time.
 *
 * @throws {PodwireError} `COMMAND_FAILED` when the kernel cannot be read.
 */
export async function reconcile(
  runner: Runner,
  desired: DesiredHost,
  options: ReconcileOptions = {},
): Promise<Reconciliation> {
  const allow = options.allow ?? (() => true);
  const decisions = new Map<string, boolean>();
  const isAllowed = (change: Change): boolean => {
    const known = decisions.get(change.key) ?? allow(change);
    decisions.set(change.key, known);
    return known;
  };
  const made = new Map<string, Change>();
  const result = (left: readonly Change[], reasons: ReadonlyMap<string, string> = new Map()): Reconciliation => {
    const held = left.filter((change) => isPossible(change) && !isAllowed(change));
    const failed = left
      .filter((change) => !held.includes(change))
      .map((change) => ({ change, reason: reasons.get(change.key) ?? lasting(change) }));
    for (const { change } of failed) made.delete(change.key);
    return { made: [...made.values()], failed, held };
  };
  let changes = await compare(runner, desired);
  for (let round = 1; round <= ROUNDS; round++) {
    const wanted = changes.filter(isPossible).filter(isAllowed);
    if (wanted.length === 0) break;
    const worked = await applyTogether(runner, wanted);
    for (const change of wanted) if (!made.has(change.key)) made.set(change.key, change);
    const rest = new Set<Change>(wanted);
    if (worked && !wanted.some(({ isBlunt }) => isBlunt === true))
      return result(changes.filter((change) => !rest.has(change)));
    changes = await compare(runner, desired);
    if (!worked) {
      // Refused, or gone meanwhile: what is still wrong now is tried alone.
      const tried = changes.filter(isPossible).filter(isAllowed);
      const reasons = await applySingly(runner, tried);
      return result(
        changes.filter(({ key }) => reasons.has(key) || !tried.some((change) => change.key === key)),
        reasons,
      );
    }
  }
  return result(changes);
}

/** Why a change that no command failed for is not made. */
function lasting(change: Change): string {
  return isPossible(change) ? `${change.why}, and again as soon as it was put right` : change.why;
}

/** @returns why, by key, those that the kernel refused were refused. */
async function applySingly(runner: Runner, changes: readonly PossibleChange[]): Promise<Map<string, string>> {
  const reasons = new Map<string, string>();
  for (const { key, tool, command } of changes) {
    if (reasons.size >= SINGLY) reasons.set(key, 'not tried, too many others fail');
    else await runner(tool, command.split(' ')).catch((error: unknown) => reasons.set(key, messageOf(error)));
  }
  return reasons;
}

async function compare(runner: Runner, desired: DesiredHost): Promise<Change[]> {
  const { families, links = [], addresses = [], neighbours = [], fdb = [], exclusive = [] } = desired;
  if (families.length + links.length + addresses.length + neighbours.length + fdb.length + exclusive.length === 0) {
    return [];
  }
  const facts = await readHostFacts(runner, desired);
  const occupants = new Map<string, KernelRoute>();
  for (const family of familiesWithGaps(desired, facts)) {
    for (const route of await foreignRoutes(runner, family)) occupants.set(routeKey(route), route);
  }
  return differences(desired, facts, occupants);
}

async function foreignRoutes(runner: Runner, family: Family): Promise<KernelRoute[]> {
  const own = String(ROUTE_PROTOCOL);
  return (await readAllRoutes(runner, family)).filter(({ protocol }) => protocol !== own);
}

type PossibleChange = Change & { readonly command: string };

function isPossible(change: Change): change is PossibleChange {
  return change.command !== undefined;
}

/**
 * Makes changes in as few processes as their order allows (see {@link differences}). `-force` goes on after a failure,
 * but neighbour commands end the whole batch when they fail, so they have one of their own.
 *
 * @returns whether every command worked.
 */
async function applyTogether(runner: Runner, changes: readonly PossibleChange[]): Promise<boolean> {
  let worked = true;
  const batch = async (part: readonly PossibleChange[]): Promise<void> => {
    const tool = part[0]?.tool;
    if (tool === undefined) return;
    const input = `${part.map(({ command }) => command).join('\n')}\n`;
    await runner(tool, ['-force', '-batch', '-'], { input, timeoutMs: BATCH_TIMEOUT_MS }).catch(() => (worked = false));
  };
  const ofKind = (...kinds: readonly Change['kind'][]): PossibleChange[] =>
    changes.filter(({ kind }) => kinds.includes(kind));
  const neighbours = ofKind('neighbour');
  const fdb = ofKind('fdb');
  const entries = async (isWanted: (change: Change) => boolean): Promise<void> => {
    await Promise.all([batch(neighbours.filter(isWanted)), batch(fdb.filter(isWanted))]);
  };
  const isSet = ({ action }: Change): boolean => action !== 'remove';
  if ([...neighbours, ...fdb].some(isSet)) {
    await batch(ofKind('link', 'address'));
    await entries(isSet);
    await batch(ofKind('route'));
  } else {
    await batch(ofKind('link', 'address', 'route'));
  }
  await entries((change) => !isSet(change));
  return worked;
}
