import { accessSync, constants, existsSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { type Counterpart, describeCounterpart, findCounterpart } from './counterparts.js';

/** What a test needs of the machine. */
export interface Needs {
  /** uid 0 with CAP_NET_ADMIN and CAP_SYS_ADMIN, as namespaces, TUN and raw sockets need. */
  readonly root?: boolean;
  /** A /dev/net/tun that this user may open. */
  readonly tun?: boolean;
  /** Programs that must be on the PATH. */
  readonly commands?: readonly string[];
  /** Real programs that podwire is tested against. */
  readonly counterparts?: readonly Counterpart[];
  /** Files of the built package, relative to the checkout, such as `dist/index.js`. */
  readonly files?: readonly string[];
}

const CAP_NET_ADMIN = 12n;
const CAP_SYS_ADMIN = 21n;

/**
 * For `describe.skipIf(missing({ root: true, tun: true, commands: ['ip'] }))`: `false` when the machine has it all,
 * else the reason as one line. Where `CI` is set a lacking feature is a failure, not a skip: it throws, which fails
 * the whole test file. Elsewhere the reason is written to stderr once, because vitest does not show one.
 */
export function missing(needs: Needs): string | false {
  const lacking = [...reasons(needs)];
  if (lacking.length === 0) return false;
  const reason = `this machine lacks ${lacking.join(', ')}`;
  if (process.env['CI']) throw new Error(`${reason}; with CI set that is a failure`);
  process.stderr.write(`skipped: ${reason}\n`);
  return reason;
}

function* reasons(needs: Needs): Generator<string> {
  if (needs.root === true) {
    if (process.getuid?.() !== 0) yield 'root';
    else if (!hasCapability(CAP_NET_ADMIN) || !hasCapability(CAP_SYS_ADMIN)) {
      yield 'the capabilities NET_ADMIN and SYS_ADMIN';
    }
  }
  if (needs.tun === true && !writable('/dev/net/tun')) yield 'a writable /dev/net/tun';
  for (const command of needs.commands ?? []) if (!onPath(command)) yield `the command '${command}'`;
  for (const name of needs.counterparts ?? []) {
    if (findCounterpart(name) === undefined) yield describeCounterpart(name);
  }
  for (const file of needs.files ?? []) {
    if (!existsSync(new URL(`../../${file}`, import.meta.url))) yield `${file} (npm run build makes it)`;
  }
}

function hasCapability(bit: bigint): boolean {
  const line = /^CapEff:\s*([0-9a-f]+)$/m.exec(readFileSync('/proc/self/status', 'utf8'));
  return line?.[1] !== undefined && ((BigInt(`0x${line[1]}`) >> bit) & 1n) === 1n;
}

function writable(path: string): boolean {
  try {
    accessSync(path, constants.R_OK | constants.W_OK);
    return true;
  } catch {
    return false;
  }
}

/** Whether a program of that name can be found, sbin directories included (an ordinary user's PATH may lack them). */
export function onPath(command: string): boolean {
  const directories = [...(process.env['PATH'] ?? '').split(':'), '/usr/local/sbin', '/usr/sbin', '/sbin'];
  return directories.some((directory) => {
    const file = join(directory, command);
    try {
      accessSync(file, constants.X_OK);
      return statSync(file).isFile();
    } catch {
      return false;
    }
  });
}
