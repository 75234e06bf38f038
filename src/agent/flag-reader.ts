/**
 * Looks flag values up: the command line first, then the environment, then the default. Go's rules where flanneld has
 * them (contract 9.2): a list takes one value from the environment, empty text there counts as not given, and a number
 * or boolean in a `FLANNELD_` variable that cannot be read is said aloud and counts as not given. A `PODWIRE_`
 * variable that cannot be read is an error like one on the command line.
 */
import { PodwireError } from '../errors.js';
import { Address, type Family } from '../net/prefix.js';
import { environmentName, type Flag, flagNamed, FLAGS, nearestFlag, readBool, readInt } from './flags.js';

/** Flag values as commander gives them: text, or a list for a repeatable flag. */
export type FlagValues = Readonly<Record<string, string | readonly string[] | undefined>>;

export class FlagReader {
  /** Lines for the operator about variables that are not followed. */
  readonly warnings: readonly string[];
  readonly #given: FlagValues;
  readonly #environment: ReadonlyMap<string, string>;

  /** @param environment `FLANNELD_…` and `PODWIRE_…` are read. */
  constructor(given: FlagValues, environment: NodeJS.ProcessEnv) {
    this.#given = given;
    const warnings: string[] = [];
    const usable = new Map<string, string>();
    for (const flag of FLAGS) {
      const name = environmentName(flag);
      const text = environment[name];
      if (text === undefined || text === '') continue;
      const problem = flag.group === 'own' || given[flag.name] !== undefined ? undefined : unreadable(flag, text);
      if (problem === undefined) usable.set(flag.name, text);
      else warnings.push(`${name}=${text} is ${problem} and counts as not given; set it right or unset it`);
    }
    warnings.push(...misspelt(environment));
    this.warnings = warnings;
    this.#environment = usable;
  }

  /** The flag as the operator wrote it, for messages. */
  origin(name: string): string {
    return this.fromCommandLine(name) ? `--${name}` : environmentName(flagOf(name));
  }

  fromCommandLine(name: string): boolean {
    return this.#given[name] !== undefined;
  }

  isSet(name: string): boolean {
    return this.list(name).length > 0;
  }

  /** Whether it is given and means something else than its default. */
  isChanged(name: string): boolean {
    const flag = flagOf(name);
    if (!this.isSet(name)) return false;
    if (flag.kind === 'bool') return this.bool(name) !== readBool(flag.default ?? '');
    return this.text(name) !== (flag.default ?? '');
  }

  list(name: string): readonly string[] {
    const value = this.#given[name] ?? this.#environment.get(flagOf(name).name);
    if (value === undefined) return [];
    return typeof value === 'string' ? [value] : value;
  }

  /** Every flag's value as text, defaults included. It holds secrets: compare it, never show it. */
  settings(): ReadonlyMap<string, string> {
    return new Map(
      FLAGS.map(({ name, default: fallback = '' }) => [name, this.isSet(name) ? this.list(name).join('\n') : fallback]),
    );
  }

  /** The last value given; empty text counts as not given. */
  optional(name: string): string | undefined {
    const value = this.list(name).at(-1);
    return value === undefined || value === '' ? undefined : value;
  }

  text(name: string): string {
    return this.optional(name) ?? flagOf(name).default ?? '';
  }

  bool(name: string): boolean {
    const value = readBool(this.text(name));
    if (value !== undefined) return value;
    throw this.refusal(name, 'is neither true nor false', '=');
  }

  /** @param also words that are allowed besides, for the message. */
  int(name: string, least: number, most: number, also = ''): number {
    const value = readInt(this.text(name));
    if (value !== undefined && value >= least && value <= most) return value;
    throw this.refusal(name, `is not a number from ${least} to ${most}${also}`);
  }

  choice<T extends string>(name: string, choices: readonly T[]): T {
    const text = this.text(name);
    const found = choices.find((choice) => choice === text);
    if (found !== undefined) return found;
    throw this.refusal(name, `is not one of ${choices.join(', ')}`);
  }

  /** @throws {PodwireError} INVALID_ADDRESS. */
  address(name: string, family?: Family): string | undefined {
    const text = this.optional(name);
    if (text === undefined) return undefined;
    const parsed = Address.tryParse(text);
    if (parsed !== undefined && (family === undefined || parsed.family === family)) return text;
    throw new PodwireError(
      'INVALID_ADDRESS',
      `${this.origin(name)} ${JSON.stringify(text)} is not an ${family === undefined ? 'IP' : `IPv${family}`} address`,
    );
  }

  /** An error that shows the flag's value: never for a secret. */
  refusal(name: string, problem: string, separator = ' '): PodwireError {
    const text = this.text(name);
    const shown = separator === '=' ? text : JSON.stringify(text);
    return new PodwireError('INVALID_ARGUMENT', `${this.origin(name)}${separator}${shown} ${problem}`);
  }
}

function flagOf(name: string): Flag {
  const flag = flagNamed(name);
  if (flag === undefined) throw new Error(`no flag is named ${name}`);
  return flag;
}

function unreadable(flag: Flag, text: string): string | undefined {
  if (flag.kind === 'bool') return readBool(text) === undefined ? 'neither true nor false' : undefined;
  return flag.kind === 'int' && readInt(text) === undefined ? 'no number' : undefined;
}

/** Variables that nobody reads but that look like one of ours; others (Kubernetes makes `FLANNELD_PORT`) are no news. */
function misspelt(environment: NodeJS.ProcessEnv): string[] {
  const known = new Set(FLAGS.map(environmentName));
  const lines: string[] = [];
  for (const name of Object.keys(environment)) {
    const [, prefix = '', rest = ''] = /^(FLANNELD|PODWIRE)_(\w+)$/.exec(name) ?? [];
    if (prefix === '' || known.has(name)) continue;
    const near = nearestFlag(rest.toLowerCase().replaceAll('_', '-'));
    if (near !== undefined) lines.push(`${name} is read by nobody: did you mean ${environmentName(near)}?`);
  }
  return lines;
}
