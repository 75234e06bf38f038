import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { DataplaneOptions } from '../../src/dataplane/dataplane.js';
import type { EngineLab, Host } from './engine-lab.js';
import { plug } from './engine-lab.js';
import type { NetNs } from './netns.js';
import type { Process } from './process.js';
import { ok, root, until } from './process.js';
import type { Opened, Remote } from './remote.js';

export const VNI = 1;
export const DEVICE = `flannel.${String(VNI)}`;

/** MAC of a host's tunnel end, whatever makes it. */
export function vtepMac(host: Host): string {
  return `0e:77:00:00:00:0${String(host.number)}`;
}

/** Underlay address of a host. */
export function outer(host: Host, family: 4 | 6 = 4): string {
  return family === 4 ? host.underlay : `fd76::${String(host.number)}`;
}

/** Opens a vxlan data plane on a host, with routes to all others, and sets the device up as the agent does. */
export async function openVxlan(
  lab: EngineLab,
  remote: Remote,
  host: Host,
  { family = 4, ...more }: Partial<DataplaneOptions> & { readonly family?: 4 | 6 } = {},
): Promise<Opened> {
  const bind = { address: outer(host, family) };
  const encapsulation = { type: 'vxlan', vni: VNI, vtepMac: vtepMac(host) } as const;
  const opened = await remote.open(lab.options(host, { device: DEVICE, bind, encapsulation, workers: 1, ...more }));
  await remote.routes(
    lab.hosts
      .filter((other) => other !== host)
      .flatMap((other) => {
        const hop = { address: outer(other, family), vtepMac: vtepMac(other) };
        return [[other.subnet, hop] as const, [other.subnet6, hop] as const];
      }),
  );
  await plug(host.ns, opened, `10.244.${String(host.number)}.0/32`);
  return opened;
}

/** The kernel's device, set up as flannel does: permanent neighbours and FDB entries, onlink routes, no learning. */
export async function kernelVxlan(
  lab: EngineLab,
  host: Host,
  { family = 4, options = [] }: { readonly family?: 4 | 6; readonly options?: readonly string[] } = {},
): Promise<void> {
  const { ns } = host;
  const link = ['link', 'add', DEVICE, 'address', vtepMac(host), 'mtu', family === 4 ? '1450' : '1430'];
  const local = ['local', outer(host, family), 'dev', 'eth0', 'dstport', '8472', 'nolearning'];
  await ns.ip(...link, 'type', 'vxlan', 'id', String(VNI), ...local, ...options);
  await ns.ip('address', 'add', base(host), 'dev', DEVICE);
  await ns.ip('link', 'set', DEVICE, 'up');
  await ns.ip('-6', 'address', 'add', base6(host), 'dev', DEVICE, 'nodad');
  for (const other of lab.hosts) {
    if (other === host) continue;
    for (const [option, prefix, gateway] of [
      ['-4', other.subnet, base(other)],
      ['-6', other.subnet6, base6(other)],
    ] as const) {
      const neighbour = ['neigh', 'replace', gateway, 'lladdr', vtepMac(other), 'dev', DEVICE, 'nud', 'permanent'];
      await ns.ip(option, ...neighbour);
      await ns.ip(option, 'route', 'replace', prefix, 'via', gateway, 'dev', DEVICE, 'onlink');
    }
    const fdb = ['fdb', 'append', vtepMac(other), 'dev', DEVICE, 'dst', outer(other, family), 'self', 'permanent'];
    await ok('bridge', ['-n', ns.name, ...fdb]);
  }
}

function base(host: Host): string {
  return `10.244.${String(host.number)}.0`;
}

function base6(host: Host): string {
  return `fd77:${String(host.number)}::`;
}

/** One datagram as it was received. */
export interface Seen {
  /** Of the sender. */
  readonly port: number;
  readonly tos: number;
  readonly ttl: number;
  readonly hex: string;
}

export class UdpListener implements AsyncDisposable {
  readonly #process: Process;
  readonly #where: string;
  #taken = 0;

  constructor(process: Process, where: string) {
    this.#process = process;
    this.#where = where;
  }

  /** Waits until this many datagrams have come since the last call; returns all that have. */
  async take(count: number): Promise<Seen[]> {
    const lines = (): string[] => this.#process.stdout.split('\n').slice(1, -1);
    const enough = (): boolean => lines().length >= this.#taken + count;
    await until(enough, { what: `${String(count)} datagrams at ${this.#where}` });
    const seen = lines().slice(this.#taken);
    this.#taken += seen.length;
    return seen.map((line) => JSON.parse(line) as Seen);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#process[Symbol.asyncDispose]();
  }
}

/** test/support/udptool.c, compiled; disposing removes it and ends what it started. */
export class UdpTool implements AsyncDisposable {
  readonly #directory: string;
  readonly #path: string;
  readonly #started: UdpListener[] = [];

  private constructor(directory: string) {
    this.#directory = directory;
    this.#path = join(directory, 'udptool');
  }

  static async build(): Promise<UdpTool> {
    const tool = new UdpTool(mkdtempSync(join(tmpdir(), 'podwire-udptool-')));
    await ok('cc', ['-O1', '-Wall', '-Wextra', '-o', tool.#path, join(root, 'test/support/udptool.c')]);
    return tool;
  }

  /** Sends datagrams given in hexadecimal with one type of service. */
  async send(
    ns: NetNs,
    to: { readonly address: string; readonly port: number },
    datagrams: readonly string[],
    how: { readonly tos?: number; readonly segment?: number; readonly withoutChecksum?: boolean } = {},
  ): Promise<void> {
    const args = [this.#path, 'send', to.address, String(to.port), String(how.tos ?? 0), String(how.segment ?? 0)];
    if (how.withoutChecksum === true) args.push('nosum');
    // One line of text a datagram on the standard input of a shell's pipe.
    await ns.ok('sh', ['-c', 'lines=$1; shift; printf "%s\\n" $lines | "$@"', 'sh', datagrams.join(' '), ...args]);
  }

  /** Starts to listen, with everything that arrives kept until it is taken; disposing ends it. */
  async listen(ns: NetNs, address: string, port: number): Promise<UdpListener> {
    const process = ns.spawn(this.#path, ['listen', address, String(port)]);
    const listener = new UdpListener(process, `${address} port ${String(port)}`);
    this.#started.push(listener);
    await process.output(/listening\n/);
    return listener;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const listener of this.#started) await listener[Symbol.asyncDispose]();
    rmSync(this.#directory, { recursive: true });
  }
}
