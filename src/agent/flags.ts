/**
 * The agent's flags: flanneld's (contract 9.2) under flanneld's names and defaults, and podwire's own. The command
 * line, the environment and the help text all come from this table.
 */

/**
 * How a flag's text is read. `bool` never takes the next argument, as in Go; `int` is a decimal number, which Go
 * checks as soon as it is given.
 */
export type FlagKind = 'text' | 'list' | 'bool' | 'int';

/**
 * - `flannel`: works as in flanneld.
 * - `own`: podwire's.
 * - `absent`: flanneld's, belongs to a part that this version does not have; refused unless it has its default value.
 * - `ignored`: accepted so that a unit's arguments need no change; means nothing here.
 */
export type FlagGroup = 'flannel' | 'own' | 'absent' | 'ignored';

/** Headings of the help, in this order. */
export const SECTIONS = {
  underlay: 'Underlay and subnet:',
  store: 'Lease store:',
  etcd: 'etcd:',
  firewall: 'Firewall:',
  engine: 'Data plane:',
  observe: 'Logs, health, control:',
  absent: 'Not in this version, or without effect:',
} as const;

export type Section = keyof typeof SECTIONS;

export interface Flag {
  readonly name: string;
  readonly kind: FlagKind;
  readonly group: FlagGroup;
  readonly section: Section;
  /** Text as it would be given; absent: not set. */
  readonly default?: string;
  /** Placeholder in the help. */
  readonly value: string;
  readonly help: string;
  /** The part that an `absent` flag belongs to, as a plural: "the Kubernetes store". */
  readonly part?: string;
}

type Row = readonly [name: string, kind: FlagKind, value: string, help: string, fallback?: string];

function rows(group: FlagGroup, section: Section, table: readonly Row[]): Flag[] {
  return table.map(([name, kind, value, help, fallback]) => ({
    name,
    kind,
    group,
    section,
    value,
    help,
    ...(fallback === undefined ? {} : { default: fallback }),
  }));
}

const KUBERNETES: readonly Row[] = [
  ['kube-subnet-mgr', 'bool', 'bool', 'Kubernetes store', 'false'],
  ['kube-api-url', 'text', 'text', 'Kubernetes store', ''],
  ['kubeconfig-file', 'text', 'path', 'Kubernetes store', ''],
  ['kube-annotation-prefix', 'text', 'text', 'Kubernetes store', 'flannel.alpha.coreos.com'],
  ['net-config-path', 'text', 'path', 'Kubernetes store', '/etc/kube-flannel/net-conf.json'],
];

export const FLAGS: readonly Flag[] = [
  ...rows('flannel', 'underlay', [
    ['iface', 'list', 'name|address', 'interface of the underlay (repeatable, first match wins)'],
    ['iface-regex', 'list', 'pattern', 'interface whose address or name matches (repeatable)'],
    ['iface-can-reach', 'text', 'address', "interface of the kernel's route to this address"],
    ['public-ip', 'text', 'address', "IPv4 address that peers use (default: the interface's)"],
    ['public-ipv6', 'text', 'address', 'IPv6 address written to the lease of a dual-stack network'],
    ['subnet-file', 'text', 'path', 'file written for the CNI plugin', '/run/flannel/subnet.env'],
    ['subnet-lease-renew-margin', 'int', 'minutes', 'renew this long before the lease ends (1 to 1439)', '60'],
  ]),
  ...rows('own', 'underlay', [
    ['state-dir', 'text', 'path', 'what outlives the process, as the last lease table', '/var/lib/podwire-agent'],
  ]),
  ...rows('own', 'store', [
    ['store', 'text', 'etcd|dir:PATH', 'where the leases are; without it etcd, as with flanneld'],
    ['lease-ttl', 'text', 'duration', 'life of the lease without renewal (30s, 90m, 24h)', '24h'],
    ['release-on-exit', 'bool', 'bool', 'give the lease back on a clean stop', 'false'],
  ]),
  ...rows('flannel', 'etcd', [
    [
      'etcd-endpoints',
      'text',
      'url,url…',
      'etcd servers, tried in turn',
      'http://127.0.0.1:4001,http://127.0.0.1:2379',
    ],
    ['etcd-prefix', 'text', 'key', 'prefix of all keys', '/coreos.com/network'],
    ['etcd-cafile', 'text', 'path', "certificates that the servers' must be signed by", ''],
    ['etcd-certfile', 'text', 'path', 'client certificate', ''],
    ['etcd-keyfile', 'text', 'path', 'its key', ''],
    ['etcd-username', 'text', 'text', 'user of an etcd with authentication', ''],
    ['etcd-password', 'text', 'text', 'its password; better in FLANNELD_ETCD_PASSWORD or --environment-file', ''],
  ]),
  ...rows('flannel', 'firewall', [
    ['ip-masq', 'bool', 'bool', "masquerade pods' packets that leave the pod network", 'false'],
    ['ip-masq-fully-random-disable', 'bool', 'bool', 'keep source ports where possible when masquerading', 'false'],
    ['iptables-resync', 'int', 'seconds', 'period of the checks beside events (1 to 86400)', '5'],
    ['iptables-forward-rules', 'bool', 'bool', "accept pods' packets where they are forwarded", 'true'],
    ['ip-blackhole-route', 'bool', 'bool', 'blackhole route for the own subnet, behind any bridge', 'false'],
  ]),
  ...rows('own', 'firewall', [
    ['firewall', 'text', 'auto|nft|iptables|none', 'who keeps the rules; auto: nft where it works', 'auto'],
  ]),
  ...rows('own', 'engine', [
    ['device', 'text', 'name', 'TUN device, %d is a free number', 'flannel%d'],
    ['port', 'text', 'port', "UDP port of this host, where it is not the network's (podwire peers only)"],
    ['vxlan-mode', 'text', 'auto|user|kernel', "who carries vxlan packets (default: the config's Mode, auto)"],
    ['tx-queue-length', 'text', 'packets', 'queue of the TUN device (default: 2000)'],
    ['workers', 'text', 'auto|N', 'worker threads, one TUN queue and socket each', 'auto'],
    ['peer-source', 'list', 'publicip=address', 'another address that the host of a lease sends from (repeatable)'],
    ['source-check', 'text', 'off|lease|strict', 'who may send to us, and for whom', 'lease'],
    ['source-port', 'text', 'flow|fixed', 'outer source port: one a flow, or always the port', 'flow'],
    ['tun-offload', 'text', 'auto|uso|tso|csum|none', 'best offload to ask of the TUN', 'auto'],
    ['udp-offload', 'text', 'auto|gso|mmsg|single', 'best batching to ask of the sockets', 'auto'],
    ['spin', 'text', 'adaptive|off|always', 'poll for a moment before sleeping', 'adaptive'],
    ['path-mtu-probes', 'bool', 'bool', 'measure the path MTU to every peer', 'true'],
    ['peer-probes', 'bool', 'bool', 'measure round trip and loss to every peer', 'true'],
  ]),
  ...rows('own', 'observe', [
    ['environment-file', 'text', 'path', 'more FLANNELD_ and PODWIRE_ variables, read again on SIGHUP'],
    ['control-socket', 'text', 'path', 'status socket (default: beside the subnet file)'],
    ['metrics-peers', 'text', 'N', 'hosts with metrics of their own (0 to 10000), the rest are summed up', '250'],
    ['log-level', 'text', 'level', 'debug, info, warn or error', 'info'],
    ['log-format', 'text', 'format', 'json, pretty, or auto: pretty on a terminal', 'auto'],
  ]),
  ...rows('flannel', 'observe', [
    ['v', 'int', 'N', 'from 2 on the log level is debug, unless --log-level says otherwise', '0'],
    ['healthz-port', 'int', 'port', '/healthz, /readyz and /metrics on this port; 0: none', '0'],
    ['healthz-ip', 'text', 'address', 'and on this address', '0.0.0.0'],
  ]),
  ...rows('absent', 'absent', KUBERNETES).map((flag) => ({ ...flag, part: 'the Kubernetes store' })),
  ...rows('ignored', 'absent', [
    ['set-node-network-unavailable', 'bool', 'bool', "flanneld's with Kubernetes, no effect", 'true'],
    ['vmodule', 'text', 'text', "flanneld's log levels by file, no effect", ''],
    ['log_backtrace_at', 'text', 'text', "flanneld's, no effect", ''],
  ]),
];

const BY_NAME: ReadonlyMap<string, Flag> = new Map(FLAGS.map((flag) => [flag.name, flag]));

export function flagNamed(name: string): Flag | undefined {
  return BY_NAME.get(name);
}

/** The flag whose name is one or two slips away from `text`. */
export function nearestFlag(text: string): Flag | undefined {
  let best: { flag: Flag; slips: number } | undefined;
  for (const flag of FLAGS) {
    // A slip in a short name makes another word.
    const slips = flag.name.length < 5 ? Infinity : slipsBetween(text, flag.name);
    if (slips <= 2 && slips < (best?.slips ?? Infinity)) best = { flag, slips };
  }
  return best?.flag;
}

/** Letters added, left out, changed or swapped with their neighbour (optimal string alignment distance). */
function slipsBetween(a: string, b: string): number {
  let before: number[] = [];
  let previous = Array.from({ length: b.length + 1 }, (_, column) => column);
  for (let row = 1; row <= a.length; row++) {
    const current = [row];
    for (let column = 1; column <= b.length; column++) {
      const same = a[row - 1] === b[column - 1];
      let slips = Math.min(
        (previous[column] ?? 0) + 1,
        (current[column - 1] ?? 0) + 1,
        (previous[column - 1] ?? 0) + (same ? 0 : 1),
      );
      if (row > 1 && column > 1 && a[row - 1] === b[column - 2] && a[row - 2] === b[column - 1]) {
        slips = Math.min(slips, (before[column - 2] ?? 0) + 1);
      }
      current.push(slips);
    }
    [before, previous] = [previous, current];
  }
  return previous[b.length] ?? 0;
}

/** `FLANNELD_IP_MASQ` for flanneld's flags, `PODWIRE_LEASE_TTL` for podwire's own. */
export function environmentName(flag: Flag): string {
  return `${flag.group === 'own' ? 'PODWIRE' : 'FLANNELD'}_${flag.name.toUpperCase().replaceAll('-', '_')}`;
}

/** Go's `strconv.ParseBool`; undefined for any other text. */
export function readBool(text: string): boolean | undefined {
  if (/^(1|t|T|true|TRUE|True)$/.test(text)) return true;
  return /^(0|f|F|false|FALSE|False)$/.test(text) ? false : undefined;
}

/** Go's decimal `strconv.ParseInt`, within what a number holds exactly; undefined for any other text. */
export function readInt(text: string): number | undefined {
  return /^[+-]?\d{1,15}$/.test(text) ? Number(text) : undefined;
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
    // A boolean like any other in Go, an option without a value in commander.
    if (name === 'version' && assigned !== undefined && readBool(assigned.slice(1)) === false) continue;
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
