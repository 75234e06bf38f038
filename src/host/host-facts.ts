/**
 * What the kernel has of the things that a {@link DesiredHost} names: one process for links and addresses, one a family
 * for routes, one a device for neighbours and for FDB entries, however many entries there are.
 */
import { messageOf, PodwireError } from '../errors.js';
import { Address, type Family } from '../net/prefix.js';
import type { DesiredHost } from './desired.js';
import { bridgeJson, ipJson, type Runner } from './exec.js';
import { field, listField, numberField, textField } from './interfaces.js';
import { isOwnBlackhole, type KernelRoute, listRoutes, ROUTE_PROTOCOL } from './routes.js';

export interface LinkFacts {
  readonly up: boolean;
  readonly mtu: number;
  readonly mac: string;
  /** Global and other addresses but link-local ones, as `address/length`. */
  readonly addresses: ReadonlySet<string>;
  /** The whole entry of `ip -j -d address show`. */
  readonly entry: unknown;
}

export interface HostFacts {
  /** By name. */
  readonly links: ReadonlyMap<string, LinkFacts>;
  /** Main table, protocol 111 only. */
  readonly routes: readonly KernelRoute[];
  /** By device, then by address: the MAC of permanent entries. */
  readonly neighbours: ReadonlyMap<string, ReadonlyMap<string, string>>;
  /** By device, then by MAC: the remote addresses of permanent entries. */
  readonly fdb: ReadonlyMap<string, ReadonlyMap<string, readonly string[]>>;
}

/** @throws {PodwireError} `COMMAND_FAILED`. */
export async function readHostFacts(runner: Runner, desired: DesiredHost): Promise<HostFacts> {
  const links = await readLinks(runner);
  const present = (names: Iterable<string>): string[] => [...new Set(names)].filter((name) => links.has(name));
  const exclusive = desired.exclusive ?? [];
  const withNeighbours = present([...exclusive, ...(desired.neighbours ?? []).map(({ device }) => device)]);
  const withFdb = present([...exclusive, ...(desired.fdb ?? []).map(({ device }) => device)]);
  const [routes, neighbours, fdb] = await Promise.all([
    Promise.all(desired.families.map((family) => listRoutes(runner, family, ROUTE_PROTOCOL))),
    Promise.all(withNeighbours.map(async (device) => [device, await readNeighbours(runner, device)] as const)),
    Promise.all(
      withFdb
        .filter((device) => isVxlan(links.get(device)))
        .map(async (device) => [device, await readFdb(runner, device)] as const),
    ),
  ]);
  return {
    links,
    routes: routes.flat().filter((route) => !isOwnBlackhole(route)),
    neighbours: new Map(neighbours),
    fdb: new Map(fdb),
  };
}

/** The whole main table of a family: for what stands in the way of a route of ours. @throws {PodwireError} */
export function readAllRoutes(runner: Runner, family: Family): Promise<KernelRoute[]> {
  return listRoutes(runner, family);
}

async function readLinks(runner: Runner): Promise<Map<string, LinkFacts>> {
  const links = new Map<string, LinkFacts>();
  for (const entry of await ipJson(runner, ['-d', 'address', 'show'])) {
    const name = textField(entry, 'ifname');
    if (name === undefined) continue;
    const addresses = new Set<string>();
    for (const info of listField(entry, 'addr_info')) {
      const address = Address.tryParse(textField(info, 'local') ?? '');
      if (address === undefined || (address.isLinkLocal && address.family === 6)) continue;
      addresses.add(`${address.toString()}/${numberField(info, 'prefixlen') ?? 0}`);
    }
    links.set(name, {
      up: listField(entry, 'flags').includes('UP'),
      mtu: numberField(entry, 'mtu') ?? 0,
      mac: textField(entry, 'address') ?? '',
      addresses,
      entry,
    });
  }
  return links;
}

function isVxlan(link: LinkFacts | undefined): boolean {
  return textField(field(link?.entry, 'linkinfo'), 'info_kind') === 'vxlan';
}

async function readNeighbours(runner: Runner, device: string): Promise<Map<string, string>> {
  const found = new Map<string, string>();
  const entries = await ipJson(runner, ['neigh', 'show', 'dev', device, 'nud', 'permanent']).catch(noDevice);
  for (const entry of entries) {
    const address = Address.tryParse(textField(entry, 'dst') ?? '');
    if (address !== undefined) found.set(address.toString(), textField(entry, 'lladdr') ?? '');
  }
  return found;
}

async function readFdb(runner: Runner, device: string): Promise<Map<string, string[]>> {
  const found = new Map<string, string[]>();
  for (const entry of await bridgeJson(runner, ['fdb', 'show', 'dev', device]).catch(noDevice)) {
    const mac = textField(entry, 'mac');
    const remote = Address.tryParse(textField(entry, 'dst') ?? '');
    // Entries without a remote are the device's own addresses; without `permanent` they were learnt.
    if (mac === undefined || remote === undefined || textField(entry, 'state') !== 'permanent') continue;
    const remotes = found.get(mac);
    if (remotes === undefined) found.set(mac, [remote.toString()]);
    else remotes.push(remote.toString());
  }
  return found;
}

/** A device that went away between two questions has no entries. */
function noDevice(error: unknown): unknown[] {
  if (error instanceof PodwireError && /Cannot find device/i.test(messageOf(error))) return [];
  throw error;
}
