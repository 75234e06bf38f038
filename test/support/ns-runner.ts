import { run as runHere, type Runner } from '../../src/host/exec.js';
import type { NetNs } from './netns.js';

export interface NsRunner {
  readonly runner: Runner;
  /** Every command that was run, in order, without its input. */
  readonly commands: string[];
}

/** A {@link Runner} whose programs run inside a network namespace. */
export function nsRunner(ns: NetNs): NsRunner {
  const commands: string[] = [];
  const runner: Runner = (command, args, options) => {
    commands.push([command, ...args].join(' '));
    return runHere('ip', ['netns', 'exec', ns.name, command, ...args], options);
  };
  return { runner, commands };
}
