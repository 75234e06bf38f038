/** `podwire status`: asks the running agent over its control socket, once or again and again. */
import { resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { styleText } from 'node:util';
import { Command } from 'commander';
import { defaultControlSocket } from '../agent/control-path.js';
import type { AgentStatus } from '../agent/status.js';
import { messageOf, PodwireError } from '../errors.js';
import { formatDuration } from './format.js';
import { Screen } from './screen.js';
import { askStatus, findAgents, USUAL_SOCKET, type FoundAgent } from './status/find.js';
import { ratesOf } from './status/rates.js';
import { viewOf, type Line } from './status/view.js';
import { table } from './table.js';
import { UsageError } from './usage.js';

interface StatusOptions {
  readonly json?: true;
  readonly list?: true;
  readonly watch?: string | true;
  readonly controlSocket?: string;
  readonly subnetFile?: string;
}

const SHORTEST_WATCH_S = 0.1;
const LONGEST_WATCH_S = 3600;

export function statusCommand(): Command {
  return new Command('status')
    .description(
      "Show the running agent's lease, peers and counters. With several agents on the host name one by its subnet file or " +
        'control socket.',
    )
    .option('--json', 'print the JSON document of GET /v1/status and nothing else; with --watch one a line')
    .option('--watch [seconds]', 'look again and again, with rates (default: every second)')
    .option('--list', 'list the agents of this host')
    .option('--control-socket <path>', "the agent's control socket (default: beside the subnet file)")
    .option('--subnet-file <path>', "the agent's subnet file (default: that of the only agent)")
    .allowExcessArguments(false)
    .action(async (options: StatusOptions) => {
      const intervalMs = watchInterval(options.watch);
      if (options.list) return showList(await findAgents(), options.json === true);
      const path = await chooseSocket(options);
      if (path === undefined) return;
      if (intervalMs !== undefined) return watch(path, intervalMs, options.json === true);
      const status = await askStatus(path);
      if (options.json) process.stdout.write(`${JSON.stringify(status, null, 2)}\n`);
      else for (const line of viewOf(status, { now: new Date(), ...width() })) process.stdout.write(`${paint(line)}\n`);
    });
}

function watchInterval(given: string | true | undefined): number | undefined {
  if (given === undefined) return undefined;
  if (given === true) return 1000;
  const seconds = /^\d{1,4}(\.\d{1,3})?$/.test(given) ? Number(given) : Number.NaN;
  if (seconds >= SHORTEST_WATCH_S && seconds <= LONGEST_WATCH_S) return seconds * 1000;
  throw new UsageError(
    `--watch ${JSON.stringify(given)} is not a number of seconds from ${SHORTEST_WATCH_S} to ${LONGEST_WATCH_S}`,
  );
}

/** The socket that is meant; with several agents to choose from they are listed, and undefined is returned. */
async function chooseSocket(options: StatusOptions): Promise<string | undefined> {
  if (options.controlSocket !== undefined) return resolve(options.controlSocket);
  if (options.subnetFile !== undefined) return defaultControlSocket(resolve(options.subnetFile));
  const agents = await findAgents();
  const [first] = agents;
  if (agents.length <= 1) return first?.controlSocket ?? USUAL_SOCKET;
  const sockets = agents.map(({ controlSocket }) => controlSocket).join(', ');
  if (options.json || options.watch !== undefined) {
    throw new PodwireError(
      'INVALID_ARGUMENT',
      `${agents.length} agents run here: choose one with --control-socket, of ${sockets}`,
    );
  }
  showList(agents, false);
  process.stdout.write('several agents run here: choose one with --control-socket or --subnet-file\n');
  return undefined;
}

function subnetOf({ status, problem }: FoundAgent): string {
  return status?.lease.subnet ?? (problem === undefined ? 'starting' : 'no answer');
}

function showList(agents: readonly FoundAgent[], asJson: boolean): void {
  if (asJson) {
    process.stdout.write(`${JSON.stringify({ schema: 'podwire-agents/1', agents }, null, 2)}\n`);
    return;
  }
  if (agents.length === 0) {
    throw new PodwireError('CLOSED', 'no agent runs on this host: start one with podwire agent');
  }
  const of = (text: (status: AgentStatus) => string) => (agent: FoundAgent) =>
    agent.status === undefined ? '' : text(agent.status);
  const lines = table(
    [
      { title: 'CONTROL SOCKET', text: ({ controlSocket }: FoundAgent) => controlSocket },
      { title: 'PID', text: of(({ pid }) => String(pid)), align: 'right' as const, giveWay: 2 },
      { title: 'NETWORK', text: of(({ network }) => network), giveWay: 1 },
      { title: 'SUBNET', text: subnetOf },
      { title: 'DEVICE', text: of(({ device }) => device.name), giveWay: 3 },
      {
        title: 'UP',
        text: of(({ startedAt }) => formatDuration(Date.now() - Date.parse(startedAt))),
        align: 'right' as const,
        giveWay: 4,
      },
    ],
    agents,
    width().width,
  );
  process.stdout.write(`${lines.join('\n')}\n`);
  for (const { problem } of agents) if (problem !== undefined) process.stderr.write(`podwire: ${problem}\n`);
}

/** Until SIGINT or SIGTERM. An agent that goes away is waited for; one that was never there is an error. */
async function watch(path: string, intervalMs: number, asJson: boolean): Promise<void> {
  const stop = new AbortController();
  for (const name of ['SIGINT', 'SIGTERM'] as const) process.once(name, () => stop.abort());
  const screen = process.stdout.isTTY && !asJson ? new Screen(process.stdout) : undefined;
  let before: { readonly status: AgentStatus; readonly at: number } | undefined;
  let problem: string | undefined;
  let status: AgentStatus | undefined = await askStatus(path);
  for (let at = performance.now(); !stop.signal.aborted;) {
    if (status !== undefined) {
      const rates = before && ratesOf(before.status, status, (at - before.at) / 1000);
      if (asJson) process.stdout.write(`${JSON.stringify(status)}\n`);
      else if (screen === undefined) print(viewOf(status, { now: new Date(), rates }));
      else
        screen.draw(
          viewOf(status, { now: new Date(), rates, width: screen.width, height: screen.height }).map(paint),
          'first',
        );
      before = { status, at };
    }
    const due = at + intervalMs;
    await sleep(Math.max(0, due - performance.now()), undefined, { signal: stop.signal }).catch(() => undefined);
    if (stop.signal.aborted) break;
    at = performance.now();
    try {
      status = await askStatus(path);
      problem = undefined;
    } catch (error) {
      status = undefined;
      const message = `${messageOf(error)}; waiting for it`;
      if (screen !== undefined) screen.draw([paint({ text: message.slice(0, screen.width), tone: 'bad' })]);
      else if (message !== problem) process.stderr.write(`podwire: ${message}\n`);
      problem = message;
    }
  }
}

function print(lines: readonly Line[]): void {
  process.stdout.write(`${lines.map(({ text }) => `${text}\n`).join('')}\n`);
}

/** The terminal's width; anywhere else lines are as long as they are. */
function width(): { readonly width?: number } {
  return process.stdout.isTTY ? { width: process.stdout.columns } : {};
}

const COLORS = { plain: undefined, bad: 'red', head: 'bold' } as const;

function paint({ text, tone }: Line): string {
  const color = COLORS[tone];
  const isPlain = color === undefined || !process.stdout.isTTY || process.env['NO_COLOR'] !== undefined;
  return isPlain ? text : styleText(color, text);
}
