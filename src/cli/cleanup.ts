/** `podwire cleanup`: takes away what a stopped agent leaves on the host. */
import { resolve } from 'node:path';
import { Command } from 'commander';
import { defaultControlSocket } from '../agent/control-path.js';
import { askControlSocket } from '../agent/control-socket.js';
import { errnoOf, messageOf, PodwireError } from '../errors.js';
import { run } from '../host/exec.js';
import { readPreviousNetworks } from '../host/firewall/previous.js';
import { findRemains } from '../host/firewall/remains.js';
import { findFlanneld } from '../host/flanneld.js';
import { Prefix } from '../net/prefix.js';
import { ExitCode, EXIT_FAILURE, UsageError } from './usage.js';

interface CleanupOptions {
  readonly subnetFile: string;
  readonly controlSocket?: string;
  readonly network?: readonly string[];
  readonly dryRun?: true;
}

export function cleanupCommand(): Command {
  return new Command('cleanup')
    .description(
      'Remove what a stopped agent leaves on this host: firewall rules of either manager, routes with protocol 111, ' +
        'devices without a process, a dead control socket. The lease, the subnet file and the state directory stay.',
    )
    .option('--subnet-file <path>', "the agent's subnet file", '/run/flannel/subnet.env')
    .option('--control-socket <path>', "the agent's control socket (default: beside the subnet file)")
    .option(
      '--network <prefix>',
      'a pod network of the agent, where the subnet file does not tell (repeatable)',
      (text: string, before: readonly string[] | undefined) => [...(before ?? []), text],
    )
    .option('--dry-run', 'say what would be removed')
    .allowExcessArguments(false)
    .action(cleanUp);
}

async function cleanUp(options: CleanupOptions): Promise<void> {
  const subnetFile = resolve(options.subnetFile);
  const controlSocket = resolve(options.controlSocket ?? defaultControlSocket(subnetFile));
  const given = (options.network ?? []).map((text) => {
    const prefix = Prefix.tryParse(text);
    if (prefix === undefined) throw new UsageError(`--network ${JSON.stringify(text)} is no prefix like 10.42.0.0/16`);
    return prefix;
  });
  if (process.geteuid?.() !== 0) {
    // Without it the rules cannot even be seen.
    throw new PodwireError('PERMISSION', 'cleanup needs root: firewall rules and routes are read and removed');
  }
  if (await isAlive(controlSocket)) {
    throw new PodwireError(
      'DEVICE_IN_USE',
      `an agent is alive at ${controlSocket}: stop it first, nothing was removed`,
    );
  }
  const say = (line: string): void => void process.stdout.write(`${line}\n`);
  const flanneld = findFlanneld(subnetFile);
  const networks = flanneld === undefined ? [...given, ...(await readPreviousNetworks(subnetFile))] : [];
  if (flanneld !== undefined) {
    // It has taken our routes and devices over and uses them.
    say(`flanneld (pid ${flanneld}) runs here with ${subnetFile}: routes, devices and its rules are left alone`);
  } else if (networks.length === 0) {
    say(`${subnetFile} names no pod network: routes, devices and flanneld's rules are left alone (see --network)`);
  }
  const remains = await findRemains({ runner: run, subnetFile, controlSocket, networks });
  let failures = 0;
  for (const { what, remove } of remains) {
    if (options.dryRun) {
      say(`would remove ${what}`);
      continue;
    }
    try {
      await remove();
      say(`removed ${what}`);
    } catch (error) {
      failures++;
      process.stderr.write(`podwire: cannot remove ${what}: ${messageOf(error)}\n`);
    }
  }
  if (remains.length === 0) say(`nothing is left of an agent with ${subnetFile}`);
  if (failures > 0) throw new ExitCode(EXIT_FAILURE);
}

/** Whether a process answers there, be it starting or running. */
async function isAlive(controlSocket: string): Promise<boolean> {
  try {
    await askControlSocket(controlSocket, '/v1/status');
    return true;
  } catch (error) {
    if (error instanceof PodwireError && error.code === 'PERMISSION') throw error;
    return !['ENOENT', 'ECONNREFUSED', 'ENOTDIR'].includes(errnoOf(error) ?? '');
  }
}
