/** `podwire agent`: the command line of the daemon, and its signals. */
import { Command, Option } from 'commander';
import { type AgentConfig, type FlagValues, loadAgentConfig } from '../agent/config.js';
import { type Flag, FLAGS, SECTIONS } from '../agent/flags.js';
import type { createLog } from '../agent/log.js';
import { VERSION } from '../agent/version.js';
import { messageOf, PodwireError } from '../errors.js';
import { ExitCode, EXIT_FAILURE, UsageError } from './usage.js';

/** After this long an orderly stop has failed: the process ends anyway, and the kernel cleans up. */
const STOP_LIMIT_MS = 5_000;
const SAME_SIGNAL_MS = 500;

/** @param onReady called whenever the network is joined. */
export function agentCommand(onReady?: () => void): Command {
  const command = new Command('agent')
    .description(
      "Hold this host's lease, keep its device, routes and subnet file, and carry the pods' packets. Flags are " +
        "flanneld's (one dash or two); flanneld's are also read from FLANNELD_<NAME>, podwire's own from " +
        'PODWIRE_<NAME>. SIGHUP reads the configuration again; SIGTERM and SIGINT stop. Exit codes: 0 stopped, 1 ' +
        'failed, 2 wrong usage.',
    )
    .version(VERSION, '--version', 'print the version')
    .allowExcessArguments(true);
  for (const section of Object.keys(SECTIONS)) {
    for (const flag of FLAGS) if (flag.section === section) command.addOption(optionOf(flag));
  }
  command.action(async () => {
    // flanneld stops reading at the first such word and runs with defaults for the rest.
    const [unexpected] = command.args;
    if (unexpected !== undefined) {
      throw new UsageError(
        `unexpected argument ${JSON.stringify(unexpected)}: a boolean flag takes its value as --flag=false; see podwire agent --help`,
      );
    }
    hidePassword(command);
    const read = reader(command);
    await serve(await read(), read, onReady);
  });
  return command;
}

/** Everybody on the host may read a process's arguments (ps, /proc/PID/cmdline): a title of ours takes their place. */
function hidePassword(command: Command): void {
  if (command.opts()['etcdPassword'] !== undefined) process.title = 'podwire agent (arguments hidden: a password)';
}

function optionOf(flag: Flag): Option {
  const shown =
    flag.default === undefined || flag.default === '' ? flag.help : `${flag.help} (default: ${flag.default})`;
  const option = new Option(`--${flag.name} <${flag.value}>`, shown).helpGroup(SECTIONS[flag.section]);
  if (flag.kind === 'list')
    option.argParser((value: string, before: string[] | undefined) => [...(before ?? []), value]);
  return option;
}

/** Reads the configuration, now and at every reload. */
function reader(command: Command): () => Promise<AgentConfig> {
  const options = command.opts<Record<string, string | string[] | undefined>>();
  const values: Record<string, string | readonly string[] | undefined> = {};
  for (const flag of FLAGS) values[flag.name] = options[optionOf(flag).attributeName()];
  return async () => {
    try {
      return await loadAgentConfig(values satisfies FlagValues, process.env);
    } catch (error) {
      const isUsage = error instanceof PodwireError && ['INVALID_ARGUMENT', 'INVALID_ADDRESS'].includes(error.code);
      throw isUsage ? new UsageError(`${messageOf(error)}; see podwire agent --help`, { cause: error }) : error;
    }
  };
}

/** Runs the agent until a signal stops it. @throws {ExitCode} after an error, which the log has told. */
async function serve(
  config: AgentConfig,
  readConfig: () => Promise<AgentConfig>,
  onReady: (() => void) | undefined,
): Promise<void> {
  // Only now, so that help and usage errors do not wait for the data plane's modules.
  const [{ Agent }, { createLog }] = await Promise.all([import('../agent/agent.js'), import('../agent/log.js')]);
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
  const agent = new Agent(config, { log, signal: stop.signal, readConfig, environment: process.env, onReady });
  process.on('SIGHUP', () => void agent.reload());
  const crash = (error: unknown): void => {
    failed = true;
    logFailure(log, error);
    end('internal error');
  };
  process.on('uncaughtException', crash);
  process.on('unhandledRejection', crash);
  try {
    if ((await agent.run()) === 'failed') failed = true;
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
