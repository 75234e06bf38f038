/** `podwire lab`: hosts in network namespaces, real agents, real packets, checked. */
import { Command, InvalidArgumentError } from 'commander';
import { constants } from 'node:os';
import { run } from '../host/exec.js';
import type { Family } from '../net/prefix.js';
import { LAB_BACKENDS, labBackend } from './lab/backends.js';
import { AgentOverlay } from './lab/overlay.js';
import {
  checkTun,
  enterCommand,
  insideOwnNamespace,
  listenToOutside,
  privilege,
  runInOwnNamespace,
} from './lab/privileges.js';
import { verdict, type LabReport } from './lab/report.js';
import { runLab } from './lab/run.js';
import { MAX_HOSTS } from './lab/topology.js';
import { LinesView, silentView, TerminalView, type View } from './lab/view.js';
import { ExitCode, UsageError } from './usage.js';

interface LabOptions {
  readonly duration: number;
  readonly hosts: number;
  readonly json?: true;
  readonly hold?: true;
  readonly backend: string;
  readonly workers: string;
  readonly ipv6?: true;
  readonly dualStack?: true;
}

const MAX_SECONDS = 3600;

/** A whole number within limits, as commander wants its parsers. */
function wholeNumber(least: number, most: number): (text: string) => number {
  return (text) => {
    const value = /^\d+$/.test(text) ? Number(text) : Number.NaN;
    if (value >= least && value <= most) return value;
    throw new InvalidArgumentError(`it must be a whole number from ${String(least)} to ${String(most)}`);
  };
}

export function labCommand(): Command {
  return new Command('lab')
    .description('Two hosts in network namespaces with real agents and real packets, checked.')
    .option('--duration <seconds>', 'length of the load phase', wholeNumber(1, MAX_SECONDS), 8)
    .option('--hosts <number>', 'hosts at the start; one more joins and leaves', wholeNumber(2, MAX_HOSTS - 1), 2)
    .option('--json', 'print one JSON document and nothing else')
    .option('--hold', 'stay up after the checks, until Ctrl-C')
    .option('--backend <name>', `what carries the packets: ${LAB_BACKENDS.join(', ')}`, 'udp')
    .option('--ipv6', 'hosts and pods with IPv6 alone')
    .option('--dual-stack', 'hosts and pods with IPv4 and IPv6')
    .option('--workers <number>', "worker threads of each agent, or 'auto'", 'auto')
    .allowExcessArguments(false)
    .action(async (options: LabOptions) => {
      labBackend(options.backend, familiesOf(options));
      if (options.workers !== 'auto') wholeNumberOf('--workers', options.workers, 1, 64);
      await (privilege() === 'full' || insideOwnNamespace() ? lab(options) : labInOwnNamespace());
    });
}

function familiesOf({ ipv6, dualStack }: LabOptions): readonly Family[] {
  if (ipv6 === true && dualStack === true) throw new UsageError('--ipv6 and --dual-stack: give one of them');
  return ipv6 === true ? [6] : dualStack === true ? [4, 6] : [4];
}

function wholeNumberOf(name: string, text: string, least: number, most: number): void {
  try {
    wholeNumber(least, most)(text);
  } catch (error) {
    if (!(error instanceof InvalidArgumentError)) throw error;
    throw new UsageError(`${name} ${text}: ${error.message}`);
  }
}

async function labInOwnNamespace(): Promise<void> {
  checkTun();
  const code = await runInOwnNamespace();
  if (code !== 0) throw new ExitCode(code);
}

/** Aborts at the first signal that ends programs, with the shell's exit code for it. Later ones change nothing. */
function stopper(): { signal: AbortSignal; stop: (signal: NodeJS.Signals) => void; release: () => void } {
  const control = new AbortController();
  const stop = (signal: NodeJS.Signals): void => control.abort(new ExitCode(128 + constants.signals[signal]));
  const signals: readonly NodeJS.Signals[] = ['SIGINT', 'SIGTERM', 'SIGHUP'];
  for (const signal of signals) process.on(signal, stop);
  const release = (): void => {
    for (const signal of signals) process.off(signal, stop);
  };
  return { signal: control.signal, stop, release };
}

async function lab(options: LabOptions): Promise<void> {
  checkTun();
  await run('ip', ['-V']);
  const { signal, stop, release } = stopper();
  try {
    const outside = insideOwnNamespace() ? await listenToOutside(stop) : { pid: undefined };
    const report = await runLab(
      {
        durationSeconds: options.duration,
        hosts: options.hosts,
        hold: options.hold === true,
        enter: enterCommand(outside),
      },
      {
        overlay: async (directory) =>
          await AgentOverlay.create(directory, options.workers, labBackend(options.backend, familiesOf(options))),
        view: chooseView(options),
        report: (result) => print(result, options),
        signal,
      },
    );
    if (!report.ok) throw new ExitCode(1);
  } finally {
    release();
    // The channel to the outside would keep this process alive.
    if (process.connected) process.disconnect();
  }
}

function chooseView(options: LabOptions): View {
  if (options.json === true) return silentView;
  if (!process.stdout.isTTY) return new LinesView(process.stdout);
  return new TerminalView(process.stdout, process.env['NO_COLOR'] === undefined);
}

function print(report: LabReport, options: LabOptions): void {
  if (report.error !== undefined) process.stderr.write(`podwire: ${report.error}\n`);
  if (options.json === true) {
    process.stdout.write(`${JSON.stringify(report, null, 2)}\n`);
    return;
  }
  if (report.figures !== undefined) process.stdout.write(`\n${verdict(report.checks, report.figures)}`);
  if (report.commands !== undefined) {
    const lines = report.commands.map((command) => `  ${command}\n`).join('');
    process.stdout.write(`\nThe lab stays up until Ctrl-C. To try in another terminal:\n${lines}`);
  }
}
