/**
 * What embedders' compilers see. Nothing here runs: `tsc` checks this file against the sources, and consumer.test.ts
 * against the built declarations with the strictest settings an embedder may have.
 */
import type {
  AcquireRequest,
  Capabilities,
  DataplaneOptions,
  DataplaneStats,
  EtcdStoreOptions,
  Lease,
  LeaseChange,
  LeaseStore,
  Logger,
  NetworkConfig,
  NextHop,
  Overlay,
  OverlayMtu,
  OverlayOptions,
  PodwireErrorCode,
  RouteTable,
  StoreAdmin,
} from 'podwire';
import { Address, Dataplane, MacAddress, PodwireError, Prefix, directoryStore, etcdStore, joinOverlay } from 'podwire';
import type { ContractCase, OpenLink, PacketPort, PortLink } from 'podwire/testing';
import { MemoryNetwork, MemoryPort, VirtualHost, openMemoryLink, packetPortContract } from 'podwire/testing';

type IsAny<T> = 0 extends 1 & T ? true : false;
type Equal<A, B> = [IsAny<A>, A] extends [IsAny<B>, B] ? ([B] extends [A] ? true : false) : false;
type Expect<T extends true> = T;

/** An engine with another control plane, as the README shows it. */
export async function embed(logger: Logger): Promise<void> {
  await using dataplane = await Dataplane.open({
    bind: { address: '192.0.2.1' },
    local: ['10.1.1.0/24', Prefix.parse('fd00:1::/64')],
    logger,
  });
  dataplane.routes.set('10.1.2.0/24', { address: Address.parse('192.0.2.2'), senders: ['198.51.100.2'] });
  dataplane.routes.replace(new Map<Prefix | string, NextHop>([['10.1.3.0/24', { address: '192.0.2.3', port: 8285 }]]));
  const hop: NextHop | undefined = dataplane.routes.lookup('10.1.2.7');
  const removed: boolean = dataplane.routes.delete(Prefix.parse('10.1.2.0/24'));
  const { totals, peers, workers } = dataplane.stats();
  const lost: number = totals.dropNoRoute + totals.dropTunQueue;
  logger.info({ hop, removed, lost, peers: peers.length, states: workers.map(({ state }) => state) }, 'stats');
  dataplane.setLocal(['10.1.4.0/24'], ['10.1.4.1']);
  await dataplane.closed;
}

/** The same over vxlan: its own VTEP's MAC, and one for every next hop. */
export async function embedVxlan(own: MacAddress): Promise<number> {
  await using dataplane = await Dataplane.open({
    bind: { address: '192.0.2.1' },
    local: ['10.1.1.0/24'],
    encapsulation: { type: 'vxlan', vni: 1, vtepMac: own },
  });
  dataplane.routes.set('10.1.2.0/24', { address: '192.0.2.2', vtepMac: '0e:00:00:00:00:02' });
  // @ts-expect-error a VNI is needed
  const incomplete: DataplaneOptions['encapsulation'] = { type: 'vxlan', vtepMac: own };
  void incomplete;
  return dataplane.stats().totals.dropVxlanVni;
}

/** A whole overlay in one call. */
export async function join(signal: AbortSignal): Promise<Overlay> {
  const store: LeaseStore = directoryStore('/var/lib/podwire');
  return await joinOverlay({ store, signal, dataplane: { workers: 2 }, subnetFile: false });
}

/** A store of the embedder's own. */
export class OwnStore implements LeaseStore {
  readonly description = 'mine';
  network(): Promise<NetworkConfig> {
    return Promise.reject(new PodwireError('NO_CONFIG', 'there is none', { cause: new Error('why') }));
  }
  acquire(request: AcquireRequest, signal?: AbortSignal): Promise<Lease> {
    signal?.throwIfAborted();
    return Promise.resolve({ subnet: Prefix.parse('10.1.1.0/24'), attributes: request.attributes });
  }
  renew(lease: Lease): Promise<Lease> {
    return Promise.resolve(lease);
  }
  release(): Promise<void> {
    return Promise.resolve();
  }
  async *watch(signal: AbortSignal): AsyncIterable<LeaseChange> {
    yield { kind: 'snapshot', leases: [] };
    await new Promise((done) => signal.addEventListener('abort', done));
  }
  [Symbol.asyncDispose](): Promise<void> {
    return Promise.resolve();
  }
}

/** Errors are told apart by a union of literals, so that a switch over them is checked. */
export function advice(error: unknown): string {
  if (!(error instanceof PodwireError)) return 'not ours';
  const code: PodwireErrorCode = error.code;
  // @ts-expect-error no such code
  if (code === 'WHATEVER') return '';
  return code === 'PORT_IN_USE' ? 'another agent runs' : error.message;
}

/** MTUs of outer and inner packets are numbers that cannot be taken for each other. */
export function mtus(mtu: OverlayMtu): number {
  const overlay: number = mtu.overlay;
  // @ts-expect-error an underlay MTU is not an overlay MTU
  const wrong: OverlayMtu['overlay'] = mtu.underlay;
  return overlay + wrong;
}

/** A store on etcd, and what operators do to it. */
export async function administer(options: EtcdStoreOptions): Promise<number | undefined> {
  await using store: LeaseStore = etcdStore({ ...options, endpoints: ['https://192.0.2.1:2379'] });
  const admin: StoreAdmin | undefined = store.admin;
  const leases: readonly Lease[] = (await admin?.list()) ?? [];
  const removed: boolean | undefined = await admin?.remove({ subnet: Prefix.parse('10.1.1.0/24') });
  // @ts-expect-error endpoints are needed
  etcdStore({ prefix: '/coreos.com/network' });
  return removed === true ? leases.length : store.metrics?.()['requests'];
}

/** Options are checked where they are written. */
export const refused: readonly DataplaneOptions[] = [
  // @ts-expect-error bind is needed
  { local: [] },
  // @ts-expect-error local is needed
  { bind: { address: '192.0.2.1' } },
  // @ts-expect-error there is no such check
  { bind: { address: '192.0.2.1' }, local: [], sourceCheck: 'loose' },
  // @ts-expect-error a misspelt option
  { bind: { address: '192.0.2.1' }, local: [], worker: 2 },
  // @ts-expect-error undefined is not the same as leaving it out
  { bind: { address: '192.0.2.1' }, local: [], device: undefined },
];

/** What is given out cannot be written to. */
export function frozen(dataplane: Dataplane, stats: DataplaneStats, lease: Lease, capabilities: Capabilities): void {
  // @ts-expect-error read-only
  stats.totals.dropNoRoute = 0;
  // @ts-expect-error read-only
  stats.peers.push(stats.peers[0]!);
  // @ts-expect-error read-only
  lease.subnet = Prefix.parse('10.0.0.0/8');
  // @ts-expect-error read-only
  capabilities.workers = 3;
  // @ts-expect-error read-only
  dataplane.routes.size = 3;
  // @ts-expect-error read-only
  dataplane.device.name = 'eth0';
  // @ts-expect-error a data plane is opened, not made
  void new Dataplane({}, Promise.resolve());
}

/** Values, not texts: nothing is compared or concatenated by accident. */
export function values(address: Address, prefix: Prefix, mac: MacAddress): boolean {
  // @ts-expect-error an address is not a prefix
  const wrong: Prefix = address;
  // @ts-expect-error nor made from bytes without a check
  void new Address(new Uint8Array(4));
  return wrong.contains(address) && prefix.equals(wrong) && mac.equals(MacAddress.parse('0e:00:00:00:00:01'));
}

/** Exact types, and that nothing that is exported is `any`. */
export type Checks = [
  Expect<Equal<string extends PodwireErrorCode ? true : false, false>>,
  Expect<Equal<PodwireError['errno'], string | undefined>>,
  Expect<Equal<Address['family'], 4 | 6>>,
  Expect<Equal<IsAny<DataplaneOptions['bind']>, false>>,
  Expect<Equal<IsAny<DataplaneStats['totals']>, false>>,
  Expect<Equal<IsAny<OverlayOptions['store']>, false>>,
  Expect<Equal<IsAny<Overlay['lease']>, false>>,
  Expect<Equal<IsAny<RouteTable['lookup']>, false>>,
  Expect<Equal<IsAny<NetworkConfig>, false>>,
  Expect<Equal<ReturnType<Dataplane['close']>, Promise<void>>>,
  Expect<Equal<ReturnType<RouteTable['entries']>, IterableIterator<readonly [Prefix, NextHop]>>>,
];

/** The testing entry: a port of the embedder's own takes the contract with any test runner. */
export function contract(it: (name: string, run: () => Promise<void>) => void, open: OpenLink): void {
  const cases: ContractCase[] = packetPortContract(open);
  for (const { name, run } of cases) it(name, run);
  const link: PortLink = openMemoryLink(4, { loss: 0.1, seed: 7 });
  link.ends[0].inject(new Uint8Array(20));
  const network = new MemoryNetwork({ seed: 3, pathMtu: 1300 });
  const host = new VirtualHost({
    local: ['10.1.1.0/24'],
    openPort: ({ memory, nextHops, reader }) =>
      new MemoryPort(
        { network, bind: { address: '192.0.2.1', port: 8285 }, memory, counterNames: [] },
        nextHops,
        reader,
      ),
  });
  const port: PacketPort = host.port;
  const taken: Uint8Array[] = host.port.take(); // the host keeps the type of its port
  void port.turn(taken.length);
  // @ts-expect-error a share, not a switch
  void new MemoryNetwork({ loss: true });
}
