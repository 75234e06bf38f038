/**
 * Docker daemon options from a subnet file, in the form of flannel's `mk-docker-opts.sh`: an environment file that a
 * unit of docker reads, with one variable an option, or all of them in one, or both.
 */
import { PodwireError } from '../errors.js';
import { Prefix } from '../net/prefix.js';
import { parseDotenv } from './subnet-env.js';

export interface DockerOptionsChoice {
  /** One `DOCKER_OPT_…` variable for each option. */
  readonly individual: boolean;
  /** All options in one variable. */
  readonly combined: boolean;
  /** Name of that variable. */
  readonly key: string;
  /** What that variable holds already; the options go behind it. */
  readonly before: string;
  /** Leave `--ip-masq` out, for a very old docker. */
  readonly withoutIpMasq: boolean;
}

/**
 * @param subnetFile the text of a subnet file.
 * @param path its name, for messages.
 * @throws {PodwireError} `INVALID_CONFIG` when the file lacks a value or has one that docker could not use. The
 *   script passes such values on; but a docker without the options would give pods addresses of its own choice.
 */
export function formatDockerOptions(subnetFile: string, path: string, choice: DockerOptionsChoice): string {
  const values = parseDotenv(subnetFile);
  const valueOf = (name: string, isGood: (text: string) => boolean, expected: string): string => {
    const text = values.get(name) ?? '';
    if (isGood(text)) return text;
    const found = text === '' ? `has no ${name}` : `has ${name}=${text}, which is no ${expected}`;
    throw new PodwireError('INVALID_CONFIG', `${path} ${found}: is that a subnet file, and has the agent started?`);
  };
  const bip = valueOf('FLANNEL_SUBNET', (text) => Prefix.tryParse(text)?.family === 4, 'IPv4 address with a length');
  const mtu = valueOf('FLANNEL_MTU', (text) => /^[1-9]\d{1,5}$/.test(text), 'MTU');
  const masq = valueOf('FLANNEL_IPMASQ', (text) => text === 'true' || text === 'false', 'true or false');
  // In the order of their names, as the shell lists them. Only one of the two may masquerade.
  const options: readonly (readonly [name: string, value: string])[] = [
    ['DOCKER_OPT_BIP', `--bip=${bip}`],
    ...(choice.withoutIpMasq ? [] : [['DOCKER_OPT_IPMASQ', `--ip-masq=${String(masq === 'false')}`] as const]),
    ['DOCKER_OPT_MTU', `--mtu=${mtu}`],
  ];
  const all = [choice.before, ...options.map(([, value]) => value)].join(' ');
  const lines = [
    ...(choice.individual ? options.map(([name, value]) => `${name}="${value}"`) : []),
    ...(choice.combined ? [`${choice.key}="${all}"`] : []),
  ];
  return `${lines.join('\n')}\n`;
}
