/** `podwire agent`: the command line of the daemon, and its signals. */
import { Command, Option } from 'commander';
import { type AgentConfig, type FlagValues, readAgentConfig } from '../agent/config.js';
import { type Flag, FLAGS } from '../agent/flags.js';
import type { createLog } from '../agent/log.js';
import { VERSION } from '../agent/version.js';
import { messageOf, PodwireError } from '../errors.js';
import { ExitCode, EXIT_FAILURE, UsageError } from './usage.js';

/** After this long an orderly stop has failed: the process ends anyway, and the kernel cleans up. */
const STOP_LIMIT_MS = 5_000;
const SAME_SIGNAL_MS = 500;

export function agentCommand(): Command {
  const command = new Command('agent')
    .description(
      "Hold this host's lease, keep its TUN device, routes and subnet file, and carry the pods' packets. Flags are " +
        "flanneld's (one dash or two); flanneld's are also read from FLANNELD_<NAME>, podwire's own from PODWIRE_<NAME>.",
    )
    .version(VERSION, '--version', 'print the version')
    .allowExcessArguments(true);
  for (const flag of FLAGS) command.addOption(optionOf(flag));
  command.action(async () => {
    // flanneld stops reading at the first such word and runs with defaults for the rest.
    const [unexpected] = command.args;
    if (unexpected !== undefined) {
      throw new UsageError(
        `unexpected argument ${JSON.stringify(unexpected)}: a boolean flag takes its value as --flag=false; see podwire agent --help`,
      );
    }
    await serve(configOf(command));
  });
  return command;
}

function optionOf(flag: Flag): Option {
  const shown =
    flag.default === undefined || flag.default === '' ? flag.help : `${flag.help} (default: ${flag.default})`;
  const option = new Option(`--${flag.name} <${flag.value}>`, shown);
  if (flag.group === 'absent' || flag.group === 'ignored') option.hideHelp();
  if (flag.kind === 'list')
    option.argParser((value: string, before: string[] | undefined) => [...(before ?? []), value]);
  return option;
}

function configOf(command: Command): AgentConfig {
  const options = command.opts<Record<string, string | string[] | undefined>>();
  const values: Record<string, string | readonly string[] | undefined> = {};
  for (const flag of FLAGS) values[flag.name] = options[optionOf(flag).attributeName()];
  try {
    return readAgentConfig(values satisfies FlagValues, process.env);
  } catch (error) {
    const isUsage = error instanceof PodwireError && ['INVALID_ARGUMENT', 'INVALID_ADDRESS'].includes(error.code);
    throw isUsage ? new UsageError(`${messageOf(error)}; see podwire agent --help`, { cause: error }) : error;
  }
}

/** Runs the agent until a signal stops it. @throws {ExitCode} after an error, which the log has told. */
async function serve(config: AgentConfig): Promise<void> {
  // Only now, so that help and usage errors do not wait for the data plane's modules.
  const [{ runAgent }, { createLog }] = await Promise.all([import('../agent/agent.js'), import('../agent/log.js')]);
  const log = createLog({ level: config.logLevel, format: config.logFormat });
  const stop = new AbortController();
  let failed = false;
  let endedAt = 0;
  const end = (reason: string): void => {
    if (stop.signal.aborted) {
      // A second wish to end, or a stop that hangs, ends the process as it is: everything of ours goes with it. What
      // comes right behind the first is the same wish: a terminal's Ctrl-C also reaches a parent that passes it on.
      if (performance.now() - endedAt > SAME_SIGNAL_MS) process.exit(EXIT_FAILURE);
      return;
    }
    endedAt = performance.now();
    log.info({ reason }, 'stopping');
    stop.abort();
    setTimeout(() => {
      log.error({ limitMs: STOP_LIMIT_MS }, 'the orderly stop takes too long, ending now');
      process.exit(EXIT_FAILURE);
    }, STOP_LIMIT_MS).unref();
  };
  process.on('SIGTERM', end);
  process.on('SIGINT', end);
  // flanneld dies of it without clean-up; a hang-up must not cost the pods their network.
  process.on('SIGHUP', () => log.info({}, 'SIGHUP: this version has nothing to read again, going on'));
  const crash = (error: unknown): void => {
    failed = true;
    logFailure(log, error);
    end('internal error');
  };
  process.on('uncaughtException', crash);
  process.on('unhandledRejection', crash);
  try {
    if ((await runAgent(config, { log, signal: stop.signal })) === 'failed') failed = true;
  } catch (error) {
    failed = true;
    logFailure(log, error);
  }
  if (failed) throw new ExitCode(EXIT_FAILURE);
  log.info({}, 'stopped');
}

function logFailure(log: ReturnType<typeof createLog>, error: unknown): void {
  const code = error instanceof PodwireError ? { code: error.code } : {};
  log.error(code, messageOf(error));
  if (process.env['PODWIRE_DEBUG'] && error instanceof Error) process.stderr.write(`${error.stack ?? ''}\n`);
}
