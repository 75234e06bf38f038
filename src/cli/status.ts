/** `podwire status`: asks the running agent over its control socket. */
import { resolve } from 'node:path';
import { Command } from 'commander';
import { defaultControlSocket } from '../agent/control-path.js';
import { askControlSocket } from '../agent/control-socket.js';
import { type AgentStatus, formatStatus } from '../agent/status.js';

interface StatusOptions {
  readonly json?: true;
  readonly controlSocket?: string;
  readonly subnetFile: string;
}

export function statusCommand(): Command {
  return new Command('status')
    .description("Show the running agent's lease, peers and counters.")
    .option('--json', 'print the JSON document of GET /v1/status')
    .option('--control-socket <path>', "the agent's control socket (default: beside the subnet file)")
    .option('--subnet-file <path>', "the agent's subnet file", '/run/flannel/subnet.env')
    .allowExcessArguments(false)
    .action(async (options: StatusOptions) => {
      const path = options.controlSocket ?? defaultControlSocket(resolve(options.subnetFile));
      const status = (await askControlSocket(resolve(path), '/v1/status')) as AgentStatus;
      process.stdout.write(options.json ? `${JSON.stringify(status, null, 2)}\n` : formatStatus(status));
    });
}
