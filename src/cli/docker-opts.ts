/** `podwire docker-opts`: what flannel's `mk-docker-opts.sh` does, with its options and default paths. */
import { readFile, writeFile } from 'node:fs/promises';
import { Command } from 'commander';
import { messageOf, PodwireError } from '../errors.js';
import { formatDockerOptions } from '../host/docker-options.js';
import { replaceFile } from '../host/replace-file.js';
import { UsageError } from './usage.js';

interface DockerOptions {
  readonly f: string;
  readonly d: string;
  readonly i?: true;
  readonly c?: true;
  readonly m?: true;
  readonly k: string;
}

export function dockerOptsCommand(): Command {
  return new Command('docker-opts')
    .description("Write an environment file with docker's options for this host's subnet (as mk-docker-opts.sh does).")
    .option('-f <path>', 'subnet file to read', '/run/flannel/subnet.env')
    .option('-d <path>', 'environment file to write, - for standard output', '/run/docker_opts.env')
    .option('-i', 'one variable for each option, such as DOCKER_OPT_MTU (default: with -c)')
    .option('-c', 'all options in one variable (default: with -i)')
    .option('-k <name>', 'name of that variable', 'DOCKER_OPTS')
    .option('-m', 'leave --ip-masq out')
    .allowExcessArguments(false)
    .action(async (options: DockerOptions) => {
      if (!/^[A-Za-z_][A-Za-z0-9_]*$/.test(options.k)) {
        throw new UsageError(`-k ${JSON.stringify(options.k)} is no name of a variable`);
      }
      const before = process.env[options.k] ?? '';
      if (/["\\\n`$]/.test(before)) {
        throw new UsageError(
          `${options.k} in the environment has a quote, "$" or a line break, which cannot be passed on: unset it`,
        );
      }
      const both = options.i === options.c;
      const text = formatDockerOptions(await read(options.f), options.f, {
        individual: both || options.i === true,
        combined: both || options.c === true,
        key: options.k,
        before,
        withoutIpMasq: options.m === true,
      });
      if (options.d === '-') process.stdout.write(text);
      else await write(options.d, text);
    });
}

async function read(path: string): Promise<string> {
  try {
    return await readFile(path, 'utf8');
  } catch (error) {
    throw new PodwireError(
      'SYSTEM',
      `cannot read the subnet file ${path}: ${messageOf(error)}; start the agent first, or name the file with -f`,
      { cause: error },
    );
  }
}

async function write(path: string, text: string): Promise<void> {
  try {
    // A device such as /dev/stdout cannot be replaced by a new file.
    if (path.startsWith('/dev/')) await writeFile(path, text);
    else await replaceFile(path, text, 0o644);
  } catch (error) {
    throw new PodwireError('SYSTEM', `cannot write ${path}: ${messageOf(error)}; see -d`, { cause: error });
  }
}
