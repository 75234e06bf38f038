/** The program: finds the sub-command and loads only that one. */
import { Command } from 'commander';
import { VERSION } from '../agent/version.js';
import { report, throwInsteadOfExit } from './usage.js';

interface Entry {
  readonly summary: string;
  readonly load: (onReady: (() => void) | undefined) => Promise<Command>;
  /** Rewrites the command's own arguments before commander sees them. */
  readonly prepare?: (args: readonly string[]) => Promise<string[]>;
}

const COMMANDS: Readonly<Record<string, Entry>> = {
  agent: {
    summary: "hold this host's lease and carry its pods' packets (takes flanneld's flags)",
    load: async (onReady) => (await import('./agent.js')).agentCommand(onReady),
    prepare: async (args) => (await import('../agent/flags.js')).normaliseArguments(args),
  },
  cleanup: {
    summary: 'remove what a stopped agent leaves on this host',
    load: async () => (await import('./cleanup.js')).cleanupCommand(),
  },
  'docker-opts': {
    summary: "docker's options for this host's subnet, as mk-docker-opts.sh writes them",
    load: async () => (await import('./docker-opts.js')).dockerOptsCommand(),
  },
  lab: {
    summary: 'two hosts in network namespaces with real agents and real packets, checked',
    load: async () => (await import('./lab.js')).labCommand(),
  },
  leases: {
    summary: 'list, watch, reserve and release leases of a store, get and set its network config',
    load: async () => (await import('./leases.js')).leasesCommand(),
  },
  status: {
    summary: "the running agent's lease, peers and counters",
    load: async () => (await import('./status.js')).statusCommand(),
  },
};

/**
 * Runs one command, and tells the user what became of it.
 *
 * @param onReady called whenever an agent has joined its network.
 * @returns the exit code.
 */
export async function run(argv: readonly string[], onReady?: () => void): Promise<number> {
  // `podwire status | head` closes our output early: that is the reader's business, not an error.
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'EPIPE') process.exit(0);
    throw error;
  });
  try {
    await runCommand(argv, onReady);
    return 0;
  } catch (error) {
    return report(error);
  }
}

async function runCommand(argv: readonly string[], onReady: (() => void) | undefined): Promise<void> {
  const program = new Command('podwire')
    .description('Userspace pod-network data plane, compatible with flannel')
    .version(VERSION, '--version', 'print the version')
    .helpCommand(false)
    .showSuggestionAfterError(true);
  const [first = '', ...rest] = argv;
  const selected = Object.hasOwn(COMMANDS, first) ? first : undefined;
  for (const [name, entry] of Object.entries(COMMANDS)) {
    program.addCommand(
      name === selected ? (await entry.load(onReady)).summary(entry.summary) : new Command(name).summary(entry.summary),
    );
  }
  throwInsteadOfExit(program);
  const prepare = selected === undefined ? undefined : COMMANDS[selected]?.prepare;
  await program.parseAsync(prepare === undefined ? [...argv] : [first, ...(await prepare(rest))], { from: 'user' });
}
