// @ts-check
/**
 * The bed that every contender is measured on, new for each start of each contender:
 *
 *   pod 1 ── veth ── cni0 (bridge) ── host 1 ══ underlay veth ══ host 2 ── cni0 (bridge) ── veth ── pod 2
 *   10.77.1.2        10.77.1.1        198.18.0.1                198.18.0.2 10.77.2.1         10.77.2.2
 *   fd77:0:0:1::2    fd77:0:0:1::1    fd18::1                   fd18::2    fd77:0:0:2::1     fd77:0:0:2::2
 *
 * Addresses are of one family, inside and outside: the contender's.
 *
 * Four network namespaces `pwbench-<pid>-{h1,h2,p1,p2}`; the pid is that of the harness, so that a later run knows whether
 * they belong to somebody. Subnets are those of the contender when it chooses them (podwire, flanneld).
 *
 * Underlays:
 *   veth  as the kernel makes it: 64 KiB segments pass whole, no GRO. What two hosts on one machine are.
 *   nic   "plain NIC": no segmentation offload of any kind (TCP, UDP, tunnels), GRO on, checksum offload stays.
 *         What a wire does: everything that crosses is at most one MTU long.
 */
import { readFileSync, readdirSync } from 'node:fs';
import { BenchError, run } from './process.mjs';

export const NAMESPACE_PREFIX = 'pwbench-';
/** MTU of the underlay. */
export const UNDERLAY_MTU = 1500;
/**
 * MTU of the pods, the same for every contender: all of them allow it over IPv4 (wireguard and nebula add 60 bytes, kernel
 * vxlan 50, podwire and flannel's udp 28, routing none), and it is the usual one of tunnels (WireGuard's own default).
 */
export const DEFAULT_INNER_MTU = 1420;

/** The MTU in use; see {@link setInnerMtu}. */
export let innerMtu = DEFAULT_INNER_MTU;

/** Sets the pods' MTU of every bed that is made from now on. @param {number} bytes */
export function setInnerMtu(bytes) {
  innerMtu = bytes;
}

/** Hosts forward; bridged packets do not pass iptables, whether or not somebody loaded br_netfilter on this machine. */
const HOST_SYSCTLS = [
  'echo 1 > /proc/sys/net/ipv4/ip_forward',
  'echo 1 > /proc/sys/net/ipv6/conf/all/forwarding',
  'for file in /proc/sys/net/bridge/bridge-nf-call-*; do [ ! -e "$file" ] || echo 0 > "$file"; done',
].join('; ');

/**
 * @typedef {object} Host
 * @property {string} netns
 * @property {string} podNetns
 * @property {string} address on the underlay
 * @property {string} device of the underlay
 * @property {string} subnet of its pods
 * @property {string} gateway the bridge's address
 * @property {string} podAddress
 */

/** @typedef {'veth' | 'nic'} Underlay */
/** @typedef {4 | 6} Family */

/** Prefix lengths of the underlay and of a host's pods. */
const LENGTHS = { 4: { underlay: 24, pods: 24 }, 6: { underlay: 64, pods: 64 } };

/**
 * Address number `index` of an IPv4 /24 or an IPv6 /64.
 * @param {string} subnet
 * @param {number} index
 */
function addressIn(subnet, index) {
  const six = /^([0-9a-f:]+::)\/64$/.exec(subnet);
  if (six !== null) return `${six[1]}${index}`;
  const match = /^(\d+\.\d+\.\d+)\.0\/24$/.exec(subnet);
  if (match === null) throw new BenchError(`the benchmark needs /24 subnets, the contender chose ${subnet}`);
  return `${match[1]}.${index}`;
}

export class Topology {
  /** @type {readonly [Host, Host]} */ hosts;
  /** @type {Underlay} */ underlay;
  /** @type {Family} */ family;
  /** @type {Record<string, string>} */ features = {};

  /**
   * @param {Underlay} underlay
   * @param {string} prefix
   * @param {Family} family
   */
  constructor(underlay, prefix, family) {
    this.underlay = underlay;
    this.family = family;
    this.hosts = [makeHost(prefix, 1, family), makeHost(prefix, 2, family)];
  }

  /** @returns {string[]} */
  get namespaces() {
    return this.hosts.flatMap((host) => [host.netns, host.podNetns]);
  }

  /**
   * Namespaces and underlay; the pods come with {@link attachPods}.
   * @param {Underlay} underlay
   * @param {AbortSignal} signal
   * @param {Family} [family] of all addresses
   */
  static async create(underlay, signal, family = 4) {
    const topology = new Topology(underlay, `${NAMESPACE_PREFIX}${process.pid}-`, family);
    try {
      await topology.#connectHosts();
      signal.throwIfAborted();
      return topology;
    } catch (error) {
      await topology.destroy();
      throw error;
    }
  }

  /** Nobody else can have an address; duplicate address detection would only take time. */
  get #noDad() {
    return this.family === 6 ? ' nodad' : '';
  }

  async #connectHosts() {
    const [one, two] = this.hosts;
    const ends = [one, two].map((host) => `name ${host.device} mtu ${UNDERLAY_MTU} netns ${host.netns}`);
    await ipBatch(undefined, [
      ...this.namespaces.map((name) => `netns add ${name}`),
      `link add ${ends[0]} type veth peer ${ends[1]}`,
    ]);
    for (const host of this.hosts) {
      await ipBatch(host.podNetns, ['link set lo up']);
      const address = `${host.address}/${LENGTHS[this.family].underlay}`;
      await ipBatch(host.netns, ['link set lo up', `address add ${address} dev ${host.device}${this.#noDad}`]);
      await run(['sh', '-c', HOST_SYSCTLS], { namespace: host.netns });
      if (this.underlay === 'nic') await makePlainNic(host);
      await ipBatch(host.netns, [`link set ${host.device} up`]);
      this.features = await readFeatures(host);
    }
  }

  /**
   * Bridges and pods, as a container runtime would make them after the network is there.
   * @param {readonly [string, string] | undefined} subnets chosen by the contender
   */
  async attachPods(subnets) {
    const length = LENGTHS[this.family].pods;
    for (const [index, host] of this.hosts.entries()) {
      if (subnets !== undefined) setSubnet(host, /** @type {string} */ (subnets[index]));
      await ipBatch(host.netns, [
        `link add cni0 mtu ${innerMtu} type bridge`,
        `address add ${host.gateway}/${length} dev cni0${this.#noDad}`,
        'link set cni0 up',
        `link add pod0 mtu ${innerMtu} type veth peer name eth0 mtu ${innerMtu} netns ${host.podNetns}`,
        'link set pod0 master cni0 up',
      ]);
      await ipBatch(host.podNetns, [
        `address add ${host.podAddress}/${length} dev eth0${this.#noDad}`,
        'link set eth0 up',
        `route add default via ${host.gateway}`,
      ]);
    }
  }

  /**
   * Removes the namespaces; processes that are still inside are killed and named.
   * @returns {Promise<string[]>} what should not have been there
   */
  async destroy() {
    const existing = new Set(listNamespaces());
    const problems = [];
    for (const name of this.namespaces) {
      if (!existing.has(name)) continue;
      for (const { pid, command } of await killInside(name))
        problems.push(`process ${pid} (${command}) was left in ${name}`);
      await run(['ip', 'netns', 'delete', name]);
    }
    return problems;
  }
}

/**
 * @param {string} prefix
 * @param {1 | 2} number
 * @param {Family} family
 * @returns {Host}
 */
function makeHost(prefix, number, family) {
  const host = {
    netns: `${prefix}h${number}`,
    podNetns: `${prefix}p${number}`,
    address: family === 6 ? `fd18::${number}` : `198.18.0.${number}`,
    device: 'eth0',
    subnet: '',
    gateway: '',
    podAddress: '',
  };
  setSubnet(host, family === 6 ? `fd77:0:0:${number}::/64` : `10.77.${number}.0/24`);
  return host;
}

/**
 * @param {Host} host
 * @param {string} subnet
 */
function setSubnet(host, subnet) {
  host.subnet = subnet;
  host.gateway = addressIn(subnet, 1);
  host.podAddress = addressIn(subnet, 2);
}

/**
 * Several `ip` commands in one process.
 * @param {string | undefined} namespace
 * @param {readonly string[]} lines
 */
export async function ipBatch(namespace, lines) {
  await run(['ip', ...(namespace === undefined ? [] : ['-n', namespace]), '-batch', '-'], {
    input: `${lines.join('\n')}\n`,
  });
}

/** @param {Host} host */
async function readFeatures(host) {
  const result = await run(['ethtool', '-k', host.device], { namespace: host.netns, allowFailure: true }).catch(
    () => undefined,
  );
  /** @type {Record<string, string>} */
  const features = {};
  for (const line of result?.stdout.split('\n') ?? []) {
    const match = /^\s*([a-z0-9_-]+): (on|off)\b(?!.*\[fixed\])/.exec(line);
    if (match !== null) features[/** @type {string} */ (match[1])] = /** @type {string} */ (match[2]);
  }
  return features;
}

/** @param {Host} host */
async function makePlainNic(host) {
  const features = await readFeatures(host);
  const off = Object.keys(features).filter((name) => /^tx-.*-segmentation$|^tx-gso-list$/.test(name));
  if (off.length === 0) throw new BenchError('underlay nic: ethtool shows no segmentation offload to switch off');
  const settings = [...off.flatMap((name) => [name, 'off']), 'gro', 'on'];
  await run(['ethtool', '-K', host.device, ...settings], { namespace: host.netns });
  const after = await readFeatures(host);
  const still = off.filter((name) => after[name] !== 'off');
  if (still.length > 0) throw new BenchError(`underlay nic: ethtool could not switch off ${still.join(', ')}`);
  if (after['generic-receive-offload'] !== 'on') throw new BenchError('underlay nic: ethtool could not switch GRO on');
}

/**
 * Makes the segments of this host's kernel vxlan device arrive at a plain NIC's other end as from a wire. When the kernel
 * cuts a superpacket and leaves the checksums to the device, the segments keep the mark `skb->encapsulation` across a veth,
 * and what has it is not merged by UDP GRO (skb_udp_tunnel_segment() and udp_gro_receive(), net/ipv4/udp_offload.c, the
 * latter since Linux 6.9). The host pays for it: it makes the checksums itself, as above a NIC that has none for tunnels.
 * @param {Host} host
 */
export async function dropEncapsulationMark(host) {
  await run(['ethtool', '-K', host.device, 'tx', 'off'], { namespace: host.netns });
}

/** @returns {string[]} names of network namespaces that a benchmark made */
function listNamespaces() {
  try {
    return readdirSync('/run/netns').filter((name) => name.startsWith(NAMESPACE_PREFIX));
  } catch {
    return []; // the directory appears with the first namespace
  }
}

/** @param {string} namespace */
async function killInside(namespace) {
  const { stdout } = await run(['ip', 'netns', 'pids', namespace], { allowFailure: true });
  const killed = [];
  for (const pid of stdout.split('\n').filter(Boolean).map(Number)) {
    killed.push({ pid, command: commandLine(pid) });
    try {
      process.kill(pid, 'SIGKILL');
    } catch {
      // it ended meanwhile
    }
  }
  return killed;
}

/** @param {number} pid */
function commandLine(pid) {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0').join(' ').trim();
  } catch {
    return '';
  }
}

/**
 * Removes what killed runs left. Two runs at a time would measure each other, so a live one is an error.
 * @param {(line: string) => void} log
 * @throws {BenchError} another run is alive
 */
export async function removeLeftovers(log) {
  const owners = new Map();
  for (const name of listNamespaces()) {
    const pid = Number(/^pwbench-(\d+)-/.exec(name)?.[1] ?? Number.NaN);
    owners.set(pid, [...(owners.get(pid) ?? []), name]);
  }
  for (const [pid, names] of owners) {
    if (pid !== process.pid && commandLine(pid).includes('bench/main.mjs')) {
      throw new BenchError(
        `another benchmark is running (process ${pid}, namespaces ${names.join(' ')}); wait for its end or stop it with: kill ${pid}`,
      );
    }
  }
  for (const [pid, names] of owners) {
    log(`removing what the ended run ${pid} left: ${names.join(' ')}`);
    for (const name of names) {
      await killInside(name);
      await run(['ip', 'netns', 'delete', name]);
    }
  }
}
