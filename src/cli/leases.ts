/** `podwire leases`: what is in a lease store, and what operators do to it. Needs no agent. */
import { readFile } from 'node:fs/promises';
import { Command } from 'commander';
import { parseNetworkConfig, type NetworkConfig } from '../control/network-config.js';
import { messageOf, PodwireError } from '../errors.js';
import { judgeConfig, readSubnets, release, reservationFor, reserve } from './leases/change.js';
import { formatLease, formatLeases, leaseEntry, type LeaseDocument } from './leases/document.js';
import { openNamedStore, withStoreFlags } from './leases/store-flags.js';
import { watchLeases } from './leases/watch.js';
import { ExitCode, EXIT_FAILURE, UsageError } from './usage.js';
import type { StoreAdmin } from '../control/lease.js';

const say = (line: string): void => void process.stdout.write(`${line}\n`);
const warn = (line: string): void => void process.stderr.write(`podwire: ${line}\n`);
const sayJson = (value: unknown): void => say(JSON.stringify(value, null, 2));

interface JsonOption {
  readonly json?: true;
}

export function leasesCommand(): Command {
  const command = new Command('leases')
    .description(
      'Look at the leases of a store (etcd, or a directory with --store dir:PATH) and change them. Works without an ' +
        "agent, with the agent's flags and FLANNELD_ETCD_… variables.",
    )
    .helpCommand(false);
  command.addCommand(listCommand()).addCommand(watchCommand());
  command.addCommand(reserveCommand()).addCommand(releaseCommand());
  return command.addCommand(configCommand());
}

function listCommand(): Command {
  return leaf('list', 'All leases: subnet, host, backend, end.')
    .option('--json', 'print a JSON document')
    .action(async (options: JsonOption, command: Command) => {
      await using opened = await openNamedStore(command, warn);
      const { admin, store } = opened;
      const [leases, config] = [await admin.list(), await configOf(admin)];
      const document: LeaseDocument = {
        schema: 'podwire-leases/1',
        store: store.description,
        leases: leases.map((lease) => leaseEntry(lease, config)),
      };
      if (options.json) return sayJson(document);
      const width = process.stdout.isTTY ? process.stdout.columns : undefined;
      for (const line of formatLeases(document, new Date(), width)) say(line);
    });
}

function watchCommand(): Command {
  return leaf('watch', 'One line for every lease that is there, and then for every change, until it is stopped.')
    .option('--json', 'one JSON object a line: { time, kind, lease }')
    .action(async (options: JsonOption, command: Command) => {
      await using opened = await openNamedStore(command, warn);
      const { admin, store } = opened;
      const stop = new AbortController();
      for (const name of ['SIGINT', 'SIGTERM'] as const) process.once(name, () => stop.abort());
      // A store that cannot be reached at all is told at once; one that goes away later is waited for.
      const config = await configOf(admin);
      store.onNotice?.((notice) => warn(notice.reason));
      await watchLeases(store, stop.signal, ({ kind, lease }) => {
        const now = new Date();
        const entry = leaseEntry(lease, config);
        if (options.json) say(JSON.stringify({ time: now.toISOString(), kind, lease: entry }));
        else say(`${now.toISOString()}  ${kind.padEnd(7)}  ${formatLease(entry, now)}`);
      });
    });
}

function reserveCommand(): Command {
  return leaf('reserve', 'Keep a subnet for a host: a lease without end, which its agent takes when it starts.')
    .argument('<subnet...>', '10.42.5.0/24, and the IPv6 subnet in a dual-stack network')
    .option('--public-ip <address>', 'the PublicIP of that host')
    .option('--public-ipv6 <address>', 'its PublicIPv6')
    .option('--json', 'print the reservation as JSON')
    .action(
      async (subnets: string[], options: JsonOption & { publicIp?: string; publicIpv6?: string }, command: Command) => {
        const wanted = readSubnets(subnets);
        const attributes = reservationFor(options.publicIp, options.publicIpv6);
        await using opened = await openNamedStore(command, warn);
        const lease = await reserve(opened.admin, wanted, attributes, warn);
        if (options.json) sayJson(leaseEntry(lease));
        else say(`reserved: ${formatLease(leaseEntry(lease), new Date())}`);
      },
    );
}

function releaseCommand(): Command {
  return leaf('release', 'Remove a reservation, or the lease of a host that is gone.')
    .argument('<subnet...>', '10.42.5.0/24, and the IPv6 subnet of a dual-stack lease')
    .option('--force', 'also a lease that has not ended')
    .option('--json', 'print what was removed as JSON')
    .action(async (subnets: string[], options: JsonOption & { force?: true }, command: Command) => {
      const wanted = readSubnets(subnets);
      await using opened = await openNamedStore(command, warn);
      const lease = await release(opened.admin, wanted, { force: options.force === true, now: new Date() });
      if (options.json) sayJson(leaseEntry(lease));
      else say(`released: ${formatLease(leaseEntry(lease), new Date())}`);
    });
}

function configCommand(): Command {
  const command = new Command('config').description('The network config of the store.').helpCommand(false);
  command.addCommand(
    leaf('get', 'Print it as it is stored.').action(async (_: object, command: Command) => {
      await using opened = await openNamedStore(command, warn);
      const text = await opened.admin.readConfig();
      if (text === undefined) {
        throw new PodwireError(
          'NO_CONFIG',
          `no network config in ${opened.store.description}: write one with podwire leases config set '{"Network":"10.42.0.0/16","Backend":{"Type":"udp"}}'`,
        );
      }
      process.stdout.write(text.endsWith('\n') ? text : `${text}\n`);
    }),
  );
  return command.addCommand(
    leaf('set', 'Check a network config, say what it does to the leases, and write it.')
      .argument('<config>', 'JSON, @FILE, or - for standard input')
      .option('--check', 'do not write it')
      .action(async (source: string, options: { check?: true }, command: Command) => {
        const text = await readConfigText(source);
        parseNetworkConfig(text);
        await using opened = await openNamedStore(command, warn);
        const { admin, store } = opened;
        for (const line of judgeConfig(text, await admin.list(), new Date())) warn(`warning: ${line}`);
        if (options.check) return say(`the config is valid; nothing was written to ${store.description}`);
        await admin.writeConfig(text);
        say(`written to ${store.description}; running agents follow within a minute`);
      }),
  );
}

function leaf(name: string, description: string): Command {
  return withStoreFlags(new Command(name).description(description).allowExcessArguments(false));
}

/** The config for judging leases; a store without a usable one has leases all the same. */
async function configOf(admin: StoreAdmin): Promise<NetworkConfig | undefined> {
  const text = await admin.readConfig();
  try {
    return text === undefined ? undefined : parseNetworkConfig(text);
  } catch (error) {
    warn(messageOf(error));
    return undefined;
  }
}

async function readConfigText(source: string): Promise<string> {
  if (source !== '-' && !source.startsWith('@')) return source;
  if (source === '@') throw new UsageError('@ names no file: write @FILE, - for standard input, or the JSON itself');
  try {
    if (source !== '-') return (await readFile(source.slice(1), 'utf8')).trim();
    const parts: Buffer[] = [];
    for await (const part of process.stdin) parts.push(part as Buffer);
    return Buffer.concat(parts).toString('utf8').trim();
  } catch (error) {
    warn(`cannot read ${source}: ${messageOf(error)}`);
    throw new ExitCode(EXIT_FAILURE);
  }
}
