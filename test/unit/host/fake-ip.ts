import { PodwireError } from '../../../src/errors.js';
import type { Runner, RunOptions } from '../../../src/host/exec.js';

/** One call of the fake, as `ip …` text; batch input is split into its commands. */
export interface FakeIp {
  readonly runner: Runner;
  readonly calls: string[];
}

/**
 * A runner that answers `ip` calls from a table of "arguments start with" → JSON value or Error; what is not in the
 * table fails the test. Batches answer with an empty string unless the table has `-batch -`.
 */
export function fakeIp(answers: Readonly<Record<string, unknown>>): FakeIp {
  const calls: string[] = [];
  const runner: Runner = async (command, args, options: RunOptions = {}) => {
    const shown = args.join(' ');
    if (options.input !== undefined) calls.push(...options.input.trimEnd().split('\n'));
    else calls.push(shown);
    const key = Object.keys(answers).find((candidate) => shown.startsWith(candidate));
    if (key === undefined) {
      if (shown === '-batch -') return '';
      throw new Error(`unexpected: ${command} ${shown}`);
    }
    const answer = answers[key];
    const value: unknown = typeof answer === 'function' ? (answer as (o: RunOptions) => unknown)(options) : answer;
    if (value instanceof Error) throw value;
    return typeof value === 'string' ? value : JSON.stringify(value);
  };
  return { runner, calls };
}

export function commandFailed(message: string): PodwireError {
  return new PodwireError('COMMAND_FAILED', message);
}

/** An entry of `ip -j -d address show`. */
export function link(
  ifname: string,
  ifindex: number,
  addresses: readonly (string | { readonly local: string; readonly [flag: string]: unknown })[],
  extra: Readonly<Record<string, unknown>> = {},
): unknown {
  return {
    ifname,
    ifindex,
    mtu: 1500,
    flags: ['BROADCAST', 'MULTICAST', 'UP', 'LOWER_UP'],
    addr_info: addresses.map((entry) => {
      const info = typeof entry === 'string' ? { local: entry } : entry;
      const six = info.local.includes(':');
      const scope = info.local.startsWith('fe80') || info.local.startsWith('169.254') ? 'link' : 'global';
      return { family: six ? 'inet6' : 'inet', prefixlen: six ? 64 : 24, scope, ...info };
    }),
    ...extra,
  };
}
