/**
 * The `extension` backend: commands of the operator's in the place of a tunnel (contract 1).
 *
 *   PreStartupCommand    before the lease; what it prints becomes the lease's BackendData, a JSON string
 *   PostStartupCommand   with our lease; NETWORK, SUBNET, PUBLIC_IP
 *   SubnetAddCommand     for every prefix of another host, also once after each start; SUBNET, PUBLIC_IP,
 *                        and on its standard input that host's BackendData and a line end
 *   SubnetRemoveCommand  when it goes; as SubnetAddCommand
 *
 * They run one after the other, without a shell (command-line.ts), the names also being environment variables. Two
 * families mean two calls. A command that fails is told and, for an added prefix, tried again.
 */
import { messageOf, PodwireError } from '../../errors.js';
import { listOwnAddresses } from '../../host/overlay-link.js';
import type { Address, Family, Prefix } from '../../net/prefix.js';
import { describeJson, shorten } from '../json.js';
import { type Lease, type LeaseAttributes, subnetsOf } from '../lease.js';
import { backendOption, type NetworkConfig, networksOf } from '../network-config.js';
import type { Backend, BackendOptions } from './backend.js';
import { type CommandLine, fillCommandLine, parseCommandLine } from './command-line.js';
import { otherType, ownPublicAddresses, peerAddress, withoutAddress } from './underlay.js';

const COMMANDS = {
  PreStartupCommand: [],
  PostStartupCommand: ['NETWORK', 'SUBNET', 'PUBLIC_IP'],
  SubnetAddCommand: ['SUBNET', 'PUBLIC_IP'],
  SubnetRemoveCommand: ['SUBNET', 'PUBLIC_IP'],
} as const;

type CommandName = keyof typeof COMMANDS;
type Commands = Readonly<Partial<Record<CommandName, CommandLine>>>;

const TIMEOUT_MS = 60_000;
const RETRY_MS = 10_000;

export class ExtensionBackend implements Backend {
  readonly type = 'extension';
  readonly dataplane = undefined;
  readonly stats = undefined;
  readonly closed: Promise<void>;
  readonly attributes: LeaseAttributes;
  readonly ownAddresses: readonly Address[];
  readonly #options: BackendOptions;
  readonly #commands: Commands;
  readonly #wanted = new Map<string, { readonly prefix: Prefix; readonly lease: Lease }>();
  readonly #failed = new Set<string>();
  #work: Promise<void> = Promise.resolve();
  #retry: NodeJS.Timeout | undefined;
  #isClosed = false;
  #settleClosed!: () => void;

  private constructor(options: BackendOptions, commands: Commands, data: string | undefined, own: readonly Address[]) {
    this.#options = options;
    this.#commands = commands;
    const { underlay } = options;
    this.attributes = {
      ...ownPublicAddresses(underlay),
      backendType: 'extension',
      ...(data === undefined ? {} : { backendData: data }),
    };
    const { publicIp, publicIpv6 } = underlay;
    this.ownAddresses = [...[publicIp, publicIpv6].filter((address) => address !== undefined), ...own];
    this.closed = new Promise((resolve) => (this.#settleClosed = resolve));
  }

  /**
   * Reads the commands and runs the first.
   *
   * @throws {PodwireError} `INVALID_CONFIG` (a command that cannot be read), `COMMAND_FAILED`.
   */
  static async open(options: BackendOptions): Promise<ExtensionBackend> {
    const commands: Partial<Record<CommandName, CommandLine>> = {};
    for (const name of Object.keys(COMMANDS) as CommandName[]) {
      const line = commandOf(options.network, name);
      if (line !== undefined) commands[name] = line;
    }
    const own = await listOwnAddresses(options.runner);
    const first = commands.PreStartupCommand;
    if (first === undefined) return new ExtensionBackend(options, commands, undefined, own);
    const [program, ...args] = fillCommandLine(first, {});
    const output = (await options.runner(program, args, { input: '\n', timeoutMs: TIMEOUT_MS })).trim();
    return new ExtensionBackend(options, commands, output, own);
  }

  get device(): string {
    return this.#options.underlay.name;
  }

  get mtu(): number {
    return this.#options.underlay.mtu;
  }

  get facts(): Readonly<Record<string, unknown>> {
    return { carriedBy: 'the commands of the network config', commands: Object.keys(this.#commands).join(' ') };
  }

  async begin(lease: Lease, publish: () => Promise<void>): Promise<void> {
    const networks = networksOf(this.#options.network);
    for (const subnet of subnetsOf(lease)) {
      const network = networks.find(({ family }) => family === subnet.family);
      await this.#run('PostStartupCommand', {
        NETWORK: String(network),
        SUBNET: subnet.toString(),
        PUBLIC_IP: this.#publicIp(subnet.family),
      });
    }
    await publish();
  }

  async changeSubnet(_from: Lease, to: Lease, publish: () => Promise<void>): Promise<void> {
    await this.begin(to, publish);
  }

  refusal(lease: Lease, prefix: Prefix): string | undefined {
    const { backendData } = lease.attributes;
    const other = otherType(lease, this.type);
    if (other !== undefined) return other;
    if (backendData !== undefined && typeof backendData !== 'string') {
      return `its BackendData is ${describeJson(backendData)}, not a string`;
    }
    return withoutAddress(lease, prefix);
  }

  setRoute(prefix: Prefix, lease: Lease): void {
    this.#wanted.set(prefix.toString(), { prefix, lease });
    this.#enqueue(() => this.#add(prefix, lease));
  }

  removeRoute(prefix: Prefix): boolean {
    const known = this.#wanted.get(prefix.toString());
    if (known === undefined) return false;
    this.#wanted.delete(prefix.toString());
    this.#failed.delete(prefix.toString());
    this.#enqueue(async () => {
      try {
        await this.#run('SubnetRemoveCommand', valuesOf(prefix, known.lease), dataOf(known.lease));
      } catch (error) {
        this.#options.logger.error({ subnet: prefix.toString() }, messageOf(error));
      }
    });
    return true;
  }

  /** What the commands did stays when the agent ends; what they left of other hosts they must know themselves. */
  routesComplete(): void {}

  async close(): Promise<void> {
    this.#isClosed = true;
    clearTimeout(this.#retry);
    await this.#work;
    this.#settleClosed();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #add(prefix: Prefix, lease: Lease): Promise<void> {
    const key = prefix.toString();
    if (this.#wanted.get(key)?.lease !== lease) return;
    try {
      await this.#run('SubnetAddCommand', valuesOf(prefix, lease), dataOf(lease));
      if (this.#failed.delete(key)) this.#options.onRouteFault?.(prefix, undefined);
    } catch (error) {
      if (!this.#failed.has(key)) this.#options.onRouteFault?.(prefix, messageOf(error));
      this.#failed.add(key);
      if (!this.#isClosed) this.#retry ??= setTimeout(() => this.#again(), RETRY_MS).unref();
    }
  }

  #again(): void {
    this.#retry = undefined;
    for (const key of this.#failed) {
      const known = this.#wanted.get(key);
      if (known !== undefined) this.#enqueue(() => this.#add(known.prefix, known.lease));
    }
  }

  #enqueue(step: () => Promise<void>): void {
    this.#work = this.#work.then(async () => {
      if (!this.#isClosed) await step();
    });
  }

  async #run(name: CommandName, values: Readonly<Record<string, string>>, data: string = ''): Promise<void> {
    const line = this.#commands[name];
    if (line === undefined) return;
    const [program, ...args] = fillCommandLine(line, values);
    const output = await this.#options.runner(program, args, {
      input: `${data}\n`,
      env: values,
      timeoutMs: TIMEOUT_MS,
    });
    this.#options.logger.debug(
      { command: name, ...values, output: shorten(output) },
      'a command of the config was run',
    );
  }

  #publicIp(family: Family): string {
    const { publicIp, publicIpv6 } = this.#options.underlay;
    return String((family === 4 ? publicIp : publicIpv6) ?? '');
  }
}

function valuesOf(prefix: Prefix, lease: Lease): Record<string, string> {
  return { SUBNET: prefix.toString(), PUBLIC_IP: String(peerAddress(prefix, lease) ?? '') };
}

function dataOf({ attributes }: Lease): string {
  return typeof attributes.backendData === 'string' ? attributes.backendData : '';
}

function commandOf(network: NetworkConfig, name: CommandName): CommandLine | undefined {
  const value = backendOption(network, name);
  if (value === undefined || value === '') return undefined;
  if (typeof value !== 'string') {
    throw new PodwireError(
      'INVALID_CONFIG',
      `invalid network config: Backend.${name} is ${describeJson(value)}; give a text`,
    );
  }
  try {
    return parseCommandLine(value.trim(), COMMANDS[name]);
  } catch (error) {
    throw new PodwireError(
      'INVALID_CONFIG',
      `invalid network config: Backend.${name} ${JSON.stringify(shorten(value))}: ${messageOf(error)}; commands run without a shell, write sh -c '…' where one is needed`,
    );
  }
}
