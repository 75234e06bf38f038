/**
 * One call from a lease store to packets: {@link joinOverlay} chooses the underlay, opens the data plane, acquires a
 * lease, sets the host up and keeps routes and subnet file in step with the leases until it is closed.
 *
 * Everything that can fail on this host is tried before a lease is taken, and what was set up is undone when a later
 * step fails; only firewall rules stay, as they do after a stop, because they may have been there before.
 */
import { basename, dirname, join, resolve } from 'node:path';
import type { Dataplane, DataplaneOptions } from '../dataplane/dataplane.js';
import { type Logger, silentLogger } from '../dataplane/logger.js';
import { ThreadsAhead } from '../dataplane/threads.js';
import { errnoOf, messageOf, PodwireError } from '../errors.js';
import { Early } from '../host/early.js';
import { run, type Runner } from '../host/exec.js';
import { findTools } from '../host/firewall/tools.js';
import { type Guard, HostGuard } from '../host/guard.js';
import { hostIdentity } from '../host/identity.js';
import { listInterfaces } from '../host/interfaces.js';
import { HostMonitor, type Monitor } from '../host/monitor.js';
import { type InterfaceChoice, type SelectedInterface, selectInterface } from '../host/select-interface.js';
import { checkSubnetEnvWritable, type PreviousSubnets, readPreviousSubnets } from '../host/subnet-env.js';
import { checkSystem } from '../host/system.js';
import type { Family, Prefix } from '../net/prefix.js';
import type { Backend, BackendOptions, DataplaneChoices } from './backends/backend.js';
import { ReopeningBackend } from './backends/reopening.js';
import { openBackend } from './backends/table.js';
import { readPeerSources, underlayFamilies } from './backends/underlay.js';
import type { VxlanMode } from './backends/vxlan-config.js';
import { Backoff, type Clock, pause, systemClock, throwIfAborted } from './clock.js';
import { DurableStore } from './durable-store.js';
import { type FirewallOptions, OverlayFirewall } from './firewall.js';
import { type Lease, type LeaseStore, subnetsOf } from './lease.js';
import { LeaseKeeper } from './lease-keeper.js';
import type { NetworkConfig } from './network-config.js';
import type { Overlay } from './overlay.js';
import { RunningOverlay } from './running-overlay.js';

export interface OverlayOptions {
  /** Where the leases are. Stays the caller's: close it after the overlay. */
  readonly store: LeaseStore;
  /** Which interface and addresses to use; default: the one with the default route. */
  readonly interface?: InterfaceChoice;
  /** File for the CNI plugin, and the memory of the own subnet; `false` for none. Default `/run/flannel/subnet.env`. */
  readonly subnetFile?: string | false;
  /**
   * Directory for what outlives the process: the last good lease table, with which a start works while the store is
   * away, and what the backend keeps. Default: the subnet file's; `false`, or no subnet file: nothing is kept.
   */
  readonly stateDirectory?: string | false;
  /** FLANNEL_IPMASQ in that file, and masquerading where {@link firewall} is given. Default false. */
  readonly ipMasq?: boolean;
  /** Firewall rules of this host (`{}` for the usual ones); absent: none are made, and none are touched. */
  readonly firewall?: FirewallOptions;
  /** Life of the lease without renewal, in milliseconds; default 24 hours. */
  readonly leaseTtlMs?: number;
  /** How long before its end the lease is renewed; default one hour, a third of the lease's life if that is less. */
  readonly renewMarginMs?: number;
  /** Names this host in the store; default: derived from machine id and public address. */
  readonly owner?: string;
  /** Packets that may wait in the TUN's queue; default: the data plane's choice. */
  readonly txQueueLength?: number;
  /** A network config that is absent or invalid is waited for, as flanneld does, instead of an error. Default false. */
  readonly waitForConfig?: boolean;
  readonly dataplane?: DataplaneChoices;
  /** Overrules the network config's `Mode` of the vxlan backend: who carries the packets. */
  readonly vxlanMode?: VxlanMode;
  /** UDP port of this host's tunnel where the network's cannot be had; the lease tells it to podwire peers. */
  readonly port?: number;
  /**
   * Further outer addresses that hosts send from, by the address in their leases: for a host whose packets do not come
   * from its PublicIP (a flanneld with `--public-ip`). Their packets would be dropped by the source check.
   */
  readonly peerSources?: Readonly<Record<string, readonly string[]>>;
  readonly logger?: Logger;
  /** Gives up a start that has not finished; no effect afterwards. */
  readonly signal?: AbortSignal;
}

/** What tests put in the place of the host. */
export interface OverlaySeams {
  readonly runner?: Runner;
  readonly openDataplane?: (options: DataplaneOptions) => Promise<Dataplane>;
  readonly checkSystem?: () => Promise<void>;
  readonly enableForwarding?: (families: readonly Family[], underlayInterface: string) => Promise<void>;
  readonly clock?: Clock;
  readonly monitor?: Monitor;
  readonly guard?: Guard;
}

export const DEFAULT_SUBNET_FILE = '/run/flannel/subnet.env';

/** How long a start that is undone waits for the store to say whether there is a lease to give back. */
const ACQUIRE_GRACE_MS = 2_000;

/** Faults of a store that are the operator's to mend: waiting would not help. */
const CONFIG_FAULTS: readonly string[] = ['NO_CONFIG', 'INVALID_CONFIG'];
/** flanneld's: how often a config that is not there, or not valid, is looked for. */
const CONFIG_RETRY_MS = 1_000;
const LASTING_ERRNOS = new Set(['ENOTDIR', 'EACCES', 'EPERM', 'EROFS']);

/**
 * Joins this host to the overlay of the store's network config. Needs root (CAP_NET_ADMIN), `/dev/net/tun` and
 * iproute2. While the store cannot be reached the call waits and says so; every other fault rejects.
 *
 * @throws {PodwireError} `UNSUPPORTED`, `PERMISSION` (this host), `NO_CONFIG`, `INVALID_CONFIG`, `OUT_OF_SUBNETS` (the
 *   store), `INTERFACE`, `INVALID_ADDRESS`, `INVALID_ARGUMENT`, `PORT_IN_USE`, `DEVICE_IN_USE`, `DEVICE`, `SYSTEM`,
 *   `COMMAND_FAILED`, `ABORTED`. Nothing of the attempt is left on the host but firewall rules, if it came that far.
 */
export function joinOverlay(options: OverlayOptions): Promise<Overlay> {
  return joinOverlayWith(options, {});
}

/** {@link joinOverlay} with replaceable surroundings, for podwire's own tests. */
export async function joinOverlayWith(options: OverlayOptions, seams: OverlaySeams): Promise<Overlay> {
  const { signal } = options;
  const logger = options.logger ?? silentLogger;
  const runner = seams.runner ?? run;
  const clock = seams.clock ?? systemClock;
  const subnetFile = options.subnetFile ?? DEFAULT_SUBNET_FILE;
  const peerSources = options.peerSources === undefined ? undefined : readPeerSources(options.peerSources);
  await (seams.checkSystem ?? checkSystem)();
  await using threads = seams.openDataplane === undefined ? new ThreadsAhead(options.dataplane?.workers) : undefined;
  const state = statePath(options.stateDirectory, subnetFile);
  const durable =
    state === undefined
      ? undefined
      : await DurableStore.open({ store: options.store, path: `${state}.leases`, isLasting, clock }, (reason) =>
          logger.warn({}, reason),
        );
  const store: LeaseStore = durable ?? options.store;
  const stopNotices = durable?.onNotice((notice) => {
    if (notice.kind === 'degraded') logger.warn({}, notice.reason);
  });
  const interfaces = new Early(() => listInterfaces(runner));
  const tools =
    options.firewall === undefined || options.firewall.manager === 'none'
      ? undefined
      : new Early(() => findTools(runner));
  const network = await readNetwork(store, clock, logger, signal, options.waitForConfig ?? false);
  const undo: (() => Promise<void>)[] = [];
  if (durable !== undefined) undo.push(() => durable.discard());
  try {
    // Before the subnet file is written anew: it tells what an earlier run has left. While the firewall's programs are
    // asked what they can do, the underlay is chosen and the backend opens.
    const openingFirewall =
      options.firewall === undefined
        ? undefined
        : OverlayFirewall.open({
            firewall: options.firewall,
            masquerade: options.ipMasq ?? false,
            network,
            subnetFile,
            ...(tools === undefined ? {} : { tools }),
            runner,
            logger,
          });
    openingFirewall?.catch(() => undefined);
    undo.push(async () => {
      const firewall = await openingFirewall?.catch(() => undefined);
      await firewall?.close();
    });
    const select = (): Promise<SelectedInterface> =>
      selectInterface(runner, options.interface ?? {}, underlayFamilies(network), interfaces);
    const underlay = await select();
    logger.info(
      {
        interface: underlay.name,
        address: String(underlay.address ?? underlay.address6),
        publicIp: String(underlay.publicIp ?? underlay.publicIpv6),
        mtu: underlay.mtu,
        why: underlay.why,
      },
      'underlay chosen',
    );
    let previous: PreviousSubnets = {};
    if (subnetFile !== false) {
      previous = await readPreviousSubnets(subnetFile);
      await checkSubnetEnvWritable(subnetFile);
    }
    throwIfAborted(signal, 'joining the overlay');
    const monitor = seams.monitor ?? new HostMonitor({ onNotice: (level, message) => logger[level]({}, message) });
    undo.push(() => monitor.close());
    const say = (level: 'info' | 'warn' | 'error', fields: object, message: string): void =>
      logger[level](fields, message);
    const guard = seams.guard ?? new HostGuard({ runner, monitor, say });
    undo.push(() => guard.close());
    const opened: { overlay?: RunningOverlay } = {};
    const onRouteFault = (prefix: Prefix, reason: string | undefined): void =>
      opened.overlay?.onRouteFault(prefix, reason);
    const common = {
      network,
      runner,
      logger,
      guard,
      onRouteFault,
      ...(options.vxlanMode === undefined ? {} : { vxlanMode: options.vxlanMode }),
      ...(options.port === undefined ? {} : { port: options.port }),
      ...(peerSources === undefined ? {} : { peerSources }),
      ...(state === undefined ? {} : { state }),
      ...(options.txQueueLength === undefined ? {} : { txQueueLength: options.txQueueLength }),
      ...(seams.openDataplane === undefined ? {} : { openDataplane: seams.openDataplane }),
    };
    const backend = await ReopeningBackend.open({
      open: (chosen, before) =>
        openBackend({
          ...common,
          underlay: chosen,
          dataplane: { ...options.dataplane, ...(threads === undefined ? {} : { threads }) },
          ...likeBefore(before, options),
        }),
      underlay,
      logger,
      clock,
      onRouteFault,
    });
    undo.push(() => backend.close());
    const firewall = await openingFirewall;
    logger.info(
      { backend: backend.type, device: backend.device, mtu: backend.mtu, ...backend.facts },
      'data plane open',
    );
    const ownerFor = async ({ publicIp, publicIpv6 }: SelectedInterface): Promise<string | undefined> => {
      const address = publicIp ?? publicIpv6;
      return options.owner ?? (address === undefined ? undefined : await hostIdentity(address));
    };
    const overlay = new RunningOverlay({
      backend,
      underlay,
      logger,
      runner,
      clock,
      subnetFile,
      ipMasq: options.ipMasq ?? false,
      peerProbes: options.dataplane?.peerProbes ?? true,
      guard,
      monitor,
      select,
      followsRoutes: options.interface?.ifaceCanReach !== undefined,
      ownerFor,
      ...(firewall === undefined ? {} : { firewall }),
      ...(durable === undefined ? {} : { durable }),
      ...(seams.enableForwarding === undefined ? {} : { enableForwarding: seams.enableForwarding }),
    });
    opened.overlay = overlay;
    const owner = await ownerFor(underlay);
    // A call that is under way when the start is called off may still end with a lease in the store.
    let acquiring: Promise<Lease> | undefined;
    undo.push(async () => {
      const lease = await within(acquiring, ACQUIRE_GRACE_MS, clock);
      // A subnet that was ours before this start stays ours: pods may live in it.
      if (lease !== undefined && !isPrevious(lease, previous)) await store.release(lease);
    });
    const keeper = new LeaseKeeper({
      store: observedStore(store, (call) => {
        acquiring = call;
      }),
      attributes: backend.attributes,
      previous,
      ownAddresses: backend.ownAddresses,
      listener: overlay.listener,
      isFatal: (error) =>
        !(options.waitForConfig === true && CONFIG_FAULTS.includes(error.code)) &&
        (error.code !== 'STORE_UNAVAILABLE' || isLasting(error)),
      clock,
      ...(owner === undefined ? {} : { owner }),
      ...(options.leaseTtlMs === undefined ? {} : { ttlMs: options.leaseTtlMs }),
      ...(options.renewMarginMs === undefined ? {} : { renewMarginMs: options.renewMarginMs }),
    });
    undo.push(() => keeper.close());
    // From here on the keeper hears them.
    stopNotices?.();
    const lease = await keeper.start(signal);
    throwIfAborted(signal, 'joining the overlay');
    await overlay.begin(keeper, network, lease);
    return overlay;
  } catch (error) {
    for (const step of undo.reverse()) {
      await step().catch((fault: unknown) => {
        logger.warn({ reason: messageOf(fault) }, 'a step of the failed start could not be undone');
      });
    }
    throw error;
  }
}

/** A backend that is opened again keeps its device's name, and its way where `auto` chose one at the start. */
function likeBefore(
  before: Backend | undefined,
  { dataplane }: OverlayOptions,
): Partial<Pick<BackendOptions, 'dataplane' | 'vxlanMode'>> {
  if (before === undefined) return {};
  const device = before.dataplane?.device.name;
  return {
    ...(device === undefined ? {} : { dataplane: { ...dataplane, device } }),
    ...(before.type === 'vxlan' ? { vxlanMode: device === undefined ? 'kernel' : 'user' } : {}),
  };
}

function isLasting(error: PodwireError): boolean {
  return LASTING_ERRNOS.has(errnoOf(error) ?? '');
}

/** Start of the names of all files that outlive the process; two agents on a host have two subnet files. */
function statePath(directory: string | false | undefined, subnetFile: string | false): string | undefined {
  if (directory === false || (directory === undefined && subnetFile === false)) return undefined;
  if (subnetFile === false) return join(directory!, 'podwire');
  const path = resolve(subnetFile).replace(/\.env$/, '');
  if (directory === undefined) return join(dirname(path), `podwire-${basename(path)}`);
  return join(directory, path.slice(1).replaceAll('/', '-'));
}

/** The network config; waits while the store itself is away, and with `waitForConfig` until there is a valid one. */
async function readNetwork(
  store: LeaseStore,
  clock: Clock,
  logger: Logger,
  signal: AbortSignal | undefined,
  waitForConfig: boolean,
): Promise<NetworkConfig> {
  const backoff = new Backoff({ minMs: 500, maxMs: 10_000 });
  for (let told = ''; ;) {
    throwIfAborted(signal, 'joining the overlay');
    try {
      const network = await store.network(signal);
      if (network.backend.defaulted) {
        logger.warn({}, "the network config names no Backend: using udp, flannel's default");
      }
      return network;
    } catch (error) {
      const isOutage = error instanceof PodwireError && error.code === 'STORE_UNAVAILABLE';
      const isConfig = waitForConfig && error instanceof PodwireError && CONFIG_FAULTS.includes(error.code);
      if (!isConfig && (!isOutage || isLasting(error))) throw error;
      if (messageOf(error) !== told) {
        const what = isConfig ? 'a network config' : 'the store';
        logger.warn({ store: store.description }, `waiting for ${what}: ${messageOf(error)}`);
      }
      told = messageOf(error);
      if (isConfig) backoff.reset();
      await pause(clock, isConfig ? CONFIG_RETRY_MS : backoff.nextMs(), signal);
    }
  }
}

/** The same store, with every acquire shown to `onAcquire`. */
function observedStore(store: LeaseStore, onAcquire: (call: Promise<Lease>) => void): LeaseStore {
  const acquire: LeaseStore['acquire'] = (request, signal) => {
    const call = store.acquire(request, signal);
    onAcquire(call);
    return call;
  };
  return new Proxy(store, {
    get(target, property) {
      if (property === 'acquire') return acquire;
      const value: unknown = Reflect.get(target, property, target);
      return typeof value === 'function' ? (value.bind(target) as unknown) : value;
    },
  });
}

/** The result of a call if there is one in time. */
async function within<T>(call: Promise<T> | undefined, limitMs: number, clock: Clock): Promise<T | undefined> {
  if (call === undefined) return undefined;
  const limit = new AbortController();
  try {
    const late = pause(clock, limitMs, limit.signal).then(() => undefined);
    return await Promise.race([call.catch(() => undefined), late]);
  } finally {
    limit.abort();
  }
}

function isPrevious(lease: Lease, previous: PreviousSubnets): boolean {
  const before = [previous.subnet, previous.subnet6];
  return subnetsOf(lease).some((subnet) => before.some((old) => old?.equals(subnet)));
}
