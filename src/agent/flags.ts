/**
 * The agent's flags: flanneld's (contract 9.2) under flanneld's names and defaults, and podwire's own. The command
 * line, the environment and the help text all come from this table.
 */

/** How a flag's text is read. `bool` never takes the next argument, as in Go. */
export type FlagKind = 'text' | 'list' | 'bool';

/**
 * - `flannel`: works as in flanneld.
 * - `own`: podwire's.
 * - `firewall`: flanneld's firewall switches; accepted, but this version installs no rules.
 * - `absent`: flanneld's, belongs to a part that this version does not have; refused unless it has its default value.
 * - `ignored`: accepted so that a unit's arguments need no change; means nothing here.
 */
export type FlagGroup = 'flannel' | 'own' | 'firewall' | 'absent' | 'ignored';

export interface Flag {
  readonly name: string;
  readonly kind: FlagKind;
  readonly group: FlagGroup;
  /** Text as it would be given; absent: not set. */
  readonly default?: string;
  /** Placeholder in the help. */
  readonly value: string;
  readonly help: string;
  /** The part that an `absent` flag belongs to, as a plural: "the etcd store". */
  readonly part?: string;
}

const FLANNEL_DEFAULT_ENDPOINTS = 'http://127.0.0.1:4001,http://127.0.0.1:2379';

const etcd = (name: string, fallback = ''): Flag => ({
  name,
  kind: 'text',
  group: 'absent',
  default: fallback,
  value: 'text',
  help: 'etcd store',
  part: 'the etcd store',
});

const kube = (name: string, kind: FlagKind, fallback: string): Flag => ({
  name,
  kind,
  group: 'absent',
  default: fallback,
  value: kind === 'bool' ? 'bool' : 'text',
  help: 'Kubernetes store',
  part: 'the Kubernetes store',
});

const flannel = (name: string, kind: FlagKind, value: string, help: string, fallback?: string): Flag => ({
  name,
  kind,
  group: 'flannel',
  value,
  help,
  ...(fallback === undefined ? {} : { default: fallback }),
});

const own = (name: string, kind: FlagKind, value: string, help: string, fallback?: string): Flag => ({
  ...flannel(name, kind, value, help, fallback),
  group: 'own',
});

const firewall = (name: string, kind: FlagKind, fallback: string, help: string): Flag => ({
  name,
  kind,
  group: 'firewall',
  default: fallback,
  value: kind === 'bool' ? 'bool' : 'seconds',
  help,
});

const ignored = (name: string, kind: FlagKind, fallback: string): Flag => ({
  name,
  kind,
  group: 'ignored',
  default: fallback,
  value: kind === 'bool' ? 'bool' : 'text',
  help: "flanneld's, no effect",
});

export const FLAGS: readonly Flag[] = [
  own('store', 'text', 'dir:PATH', 'lease store; without it the agent means etcd, as flanneld does'),
  flannel('iface', 'list', 'name|address', 'interface of the underlay (repeatable, first match wins)'),
  flannel('iface-regex', 'list', 'pattern', 'interface whose address or name matches (repeatable)'),
  flannel('iface-can-reach', 'text', 'address', "interface of the kernel's route to this address"),
  flannel('public-ip', 'text', 'address', "IPv4 address that peers use (default: the interface's)"),
  flannel('public-ipv6', 'text', 'address', 'IPv6 address written to the lease of a dual-stack network'),
  flannel('subnet-file', 'text', 'path', 'file written for the CNI plugin', '/run/flannel/subnet.env'),
  own('state-dir', 'text', 'path', 'what outlives the process, as the last lease table', '/var/lib/podwire-agent'),
  flannel('subnet-lease-renew-margin', 'text', 'minutes', 'renew this long before the lease ends (1 to 1439)', '60'),
  firewall('ip-masq', 'bool', 'false', 'FLANNEL_IPMASQ in the subnet file (no rules are installed by this version)'),
  firewall('ip-masq-fully-random-disable', 'bool', 'false', 'accepted, no rules in this version'),
  firewall('iptables-resync', 'text', '5', 'accepted, no rules in this version'),
  firewall('iptables-forward-rules', 'bool', 'true', 'accepted, no rules in this version'),
  own('lease-ttl', 'text', 'duration', 'life of the lease without renewal (30s, 90m, 24h)', '24h'),
  own('release-on-exit', 'bool', 'bool', 'give the lease back on a clean stop', 'false'),
  own('device', 'text', 'name', 'TUN device, %d is a free number', 'flannel%d'),
  own('tx-queue-length', 'text', 'packets', 'queue of the TUN device (default: 2000)'),
  own('workers', 'text', 'auto|N', 'worker threads, one TUN queue and socket each', 'auto'),
  own('source-check', 'text', 'off|lease|strict', 'who may send to us, and for whom', 'lease'),
  own('source-port', 'text', 'flow|fixed', 'outer source port: one a flow, or always the port', 'flow'),
  own('tun-offload', 'text', 'auto|uso|tso|csum|none', 'best offload to ask of the TUN', 'auto'),
  own('udp-offload', 'text', 'auto|gso|mmsg|single', 'best batching to ask of the sockets', 'auto'),
  own('spin', 'text', 'adaptive|off|always', 'poll for a moment before sleeping', 'adaptive'),
  own('path-mtu-probes', 'bool', 'bool', 'measure the path MTU to every peer', 'true'),
  own('control-socket', 'text', 'path', 'status socket (default: beside the subnet file)'),
  own('log-level', 'text', 'level', 'debug, info, warn or error', 'info'),
  own('log-format', 'text', 'format', 'json, pretty, or auto: pretty on a terminal', 'auto'),
  etcd('etcd-endpoints', FLANNEL_DEFAULT_ENDPOINTS),
  etcd('etcd-prefix', '/coreos.com/network'),
  etcd('etcd-keyfile'),
  etcd('etcd-certfile'),
  etcd('etcd-cafile'),
  etcd('etcd-username'),
  etcd('etcd-password'),
  kube('kube-subnet-mgr', 'bool', 'false'),
  kube('kube-api-url', 'text', ''),
  kube('kubeconfig-file', 'text', ''),
  kube('kube-annotation-prefix', 'text', 'flannel.alpha.coreos.com'),
  kube('net-config-path', 'text', '/etc/kube-flannel/net-conf.json'),
  { ...kube('healthz-port', 'text', '0'), help: 'health checks', part: 'the health check server' },
  {
    ...kube('ip-blackhole-route', 'bool', 'false'),
    help: 'blackhole route',
    part: 'the blackhole route of the own subnet',
  },
  ignored('healthz-ip', 'text', '0.0.0.0'),
  ignored('set-node-network-unavailable', 'bool', 'true'),
  ignored('v', 'text', '0'),
  ignored('vmodule', 'text', ''),
  ignored('log_backtrace_at', 'text', ''),
];

const BY_NAME: ReadonlyMap<string, Flag> = new Map(FLAGS.map((flag) => [flag.name, flag]));

export function flagNamed(name: string): Flag | undefined {
  return BY_NAME.get(name);
}

/** `FLANNELD_IP_MASQ` for flanneld's flags, `PODWIRE_LEASE_TTL` for podwire's own. */
export function environmentName(flag: Flag): string {
  return `${flag.group === 'own' ? 'PODWIRE' : 'FLANNELD'}_${flag.name.toUpperCase().replaceAll('-', '_')}`;
}

/**
 * Go's command line in a form that commander reads the same way: `-flag` becomes `--flag`, and a bare boolean becomes
 * `--flag=true`, because in Go a boolean never takes the next argument. Everything after `--` stays as it is.
 */
export function normaliseArguments(args: readonly string[]): string[] {
  const result: string[] = [];
  for (let i = 0; i < args.length; i++) {
    const arg = args[i] ?? '';
    if (arg === '--') return [...result, ...args.slice(i)];
    const match = /^--?([A-Za-z][A-Za-z0-9_-]*)(=.*)?$/s.exec(arg);
    // commander's own -h and -V stay single.
    if (match === null || arg === '-h' || arg === '-V') {
      result.push(arg);
      continue;
    }
    const [, name = '', assigned] = match;
    const flag = BY_NAME.get(name);
    if (flag === undefined) {
      // Without its value, or commander would look for names near the whole word.
      result.push(`--${name}`);
    } else if (assigned !== undefined || flag.kind === 'bool') {
      result.push(`--${name}${assigned ?? '=true'}`);
    } else {
      // The value is bound here, so that one which starts with a dash stays a value, as in Go.
      const value = args[++i];
      result.push(value === undefined ? `--${name}` : `--${name}=${value}`);
    }
  }
  return result;
}
