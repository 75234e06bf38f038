/**
 * A joined overlay: follows what the lease keeper reports with routes, addresses and the subnet file.
 *
 * The keeper's callbacks are synchronous; what takes time (a changed subnet) is queued and done one after the other,
 * and tried again until it works.
 */
import type { Dataplane, DataplaneStats } from '../dataplane/dataplane.js';
import type { Logger } from '../dataplane/logger.js';
import { ProbePort } from '../dataplane/probe-port.js';
import type { PeerProbe } from '../dataplane/probes.js';
import { messageOf, PodwireError } from '../errors.js';
import type { Runner } from '../host/exec.js';
import type { FirewallStats } from '../host/firewall/firewall.js';
import { enableForwarding } from '../host/forwarding.js';
import type { Guard } from '../host/guard.js';
import type { Monitor } from '../host/monitor.js';
import type { SelectedInterface } from '../host/select-interface.js';
import { formatSubnetEnv, type SubnetEnv, subnetEnvEquals, writeSubnetEnv } from '../host/subnet-env.js';
import type { Address, Family, Prefix } from '../net/prefix.js';
import type { ReopeningBackend } from './backends/reopening.js';
import { Backoff, type Clock, pause } from './clock.js';
import type { OverlayFirewall } from './firewall.js';
import type { DesiredRoute } from './desired-routes.js';
import type { DurableStore } from './durable-store.js';
import { type HostState, HostWatch } from './host-watch.js';
import { type Lease, publicAddress, sameSubnets, type StoreNotice, subnetsOf } from './lease.js';
import type { LeaseCounts } from './lease-counts.js';
import type { LeaseKeeper, StoreState } from './lease-keeper.js';
import type { LeaseKeeperListener } from './lease-listener.js';
import { type NetworkConfig, networksOf } from './network-config.js';

/**
 * `routed`: its subnets are sent to that host. `refused`: the lease makes no sense. `ignored`: another backend's.
 * `failed`: the route could not be set.
 */
export type LeaseState = 'routed' | 'refused' | 'ignored' | 'failed';

/** Another host's lease and what became of it. */
export interface OverlayLease {
  /** Where the kernel carries the packets: answers to probes, and when the host was last heard. */
  readonly probe?: PeerProbe;
  readonly lastHeardMs?: number;
  readonly lease: Lease;
  readonly state: LeaseState;
  /** Why it is not routed; one line. */
  readonly reason?: string;
}

export interface OverlayStatus {
  readonly network: NetworkConfig;
  readonly interface: SelectedInterface;
  readonly lease: Lease;
  /** False while the store says that the lease is gone; its subnet is served on. */
  readonly leaseHeld: boolean;
  readonly device: string;
  /** The device of IPv6 packets, where it is another one. */
  readonly device6?: string | undefined;
  /** Overlay MTU in bytes. */
  readonly mtu: number;
  /** Undefined when none was asked for. */
  readonly subnetFile: { readonly path: string; readonly written: boolean } | undefined;
  readonly leases: readonly OverlayLease[];
  /** What has happened to our lease and to the others' since the start. */
  readonly counts: LeaseCounts;
  /** What is watched on this host, and what was put right. */
  readonly host: HostState;
  /** What the backend set up. */
  readonly facts: Readonly<Record<string, unknown>>;
  /** Undefined where the kernel carries the packets. */
  readonly dataplane: DataplaneStats | undefined;
  /** Absent when no rules were asked for. */
  readonly firewall?: FirewallStats;
  /** `tableOf`: the store is away since the start, and leases come from the table saved at that time. */
  readonly store: StoreState & { readonly tableOf?: Date };
}

export interface CloseOptions {
  /** Give the lease back. */
  readonly release?: boolean;
  /** Leave nothing in the kernel either where it carries the packets: another backend comes in its place. */
  readonly dismantle?: boolean;
}

export interface Overlay extends AsyncDisposable {
  readonly network: NetworkConfig;
  /** What is in use now: its address and MTU are followed. */
  readonly interface: SelectedInterface;
  /**
   * The user-space engine; undefined where the kernel carries the packets. Another one from the moment on that it had
   * to be opened again.
   */
  readonly dataplane: Dataplane | undefined;
  /** The lease that this host serves now. */
  readonly lease: Lease;
  /** Resolves after {@link close}; rejects when the data plane has failed for good. Faults of the store do neither. */
  readonly closed: Promise<void>;
  status(): OverlayStatus;
  /**
   * Chooses the underlay again and follows another one, and writes the subnet file again, for one that somebody has
   * changed or removed.
   *
   * @throws {PodwireError} `SYSTEM` when the file cannot be written.
   */
  refresh(): Promise<void>;
  /**
   * Stops forwarding, removes device, addresses and routes, and stops renewing. The lease stays this host's until it
   * expires, and the subnet file and the firewall rules stay; with `release` the lease is given back. May be called twice.
   */
  close(options?: CloseOptions): Promise<void>;
}

export interface RunningOverlayOptions {
  readonly backend: ReopeningBackend;
  readonly underlay: SelectedInterface;
  readonly logger: Logger;
  readonly runner: Runner;
  readonly clock: Clock;
  readonly subnetFile: string | false;
  readonly ipMasq: boolean;
  readonly firewall?: OverlayFirewall;
  /** Asks peers for signs of life where the backend has no engine that does. */
  readonly peerProbes: boolean;
  /** Closed with the overlay. */
  readonly guard: Guard;
  readonly monitor: Monitor;
  /** The choice of the underlay as at the start. */
  readonly select: () => Promise<SelectedInterface>;
  /** That choice hangs on a route of the host. */
  readonly followsRoutes: boolean;
  /** This host's name in the store when its public address is that of `underlay`. */
  readonly ownerFor: (underlay: SelectedInterface) => Promise<string | undefined>;
  /** The store as the keeper sees it; closed with the overlay. */
  readonly durable?: DurableStore;
  readonly enableForwarding?: (families: readonly Family[], underlayInterface: string) => Promise<void>;
}

/** Delays between tries of host set-up that failed. */
const RETRY = { minMs: 500, maxMs: 30_000 };

export class RunningOverlay implements Overlay {
  readonly closed: Promise<void>;
  /** For the lease keeper; routes follow as soon as it has leases, also before {@link begin}. */
  readonly listener: LeaseKeeperListener;
  readonly #options: RunningOverlayOptions;
  readonly #backend: ReopeningBackend;
  readonly #logger: Logger;
  /** Prefixes of accepted leases that are not in the data plane, and why. */
  readonly #unrouted = new Map<string, { readonly state: 'ignored' | 'failed'; readonly reason: string }>();
  readonly #stopping = new AbortController();
  #running: { keeper: LeaseKeeper; network: NetworkConfig; lease: Lease; watch: HostWatch } | undefined;
  #leaseHeld = true;
  #snapshotSeen = false;
  #written = false;
  #work: Promise<void> = Promise.resolve();
  #closing: Promise<void> | undefined;
  #probePort: ProbePort | undefined;

  constructor(options: RunningOverlayOptions) {
    this.#options = options;
    this.#backend = options.backend;
    this.#logger = options.logger;
    this.closed = options.backend.closed;
    this.listener = this.#makeListener();
  }

  get interface(): SelectedInterface {
    return this.#backend.underlay;
  }

  get dataplane(): Dataplane | undefined {
    return this.#backend.dataplane;
  }

  get network(): NetworkConfig {
    return this.#state.network;
  }

  get lease(): Lease {
    const { keeper, lease } = this.#state;
    // The keeper's knows the latest renewal, but may be a subnet ahead of the host.
    return keeper.lease !== undefined && sameSubnets(keeper.lease, lease) ? keeper.lease : lease;
  }

  /**
   * Sets the host up for the first lease: device, subnet file, forwarding.
   *
   * @throws {PodwireError} what a step threw; the caller closes backend and keeper.
   */
  begin(keeper: LeaseKeeper, network: NetworkConfig, lease: Lease): Promise<void> {
    const watch = this.#watchHost(network);
    this.#running = { keeper, network, lease, watch };
    const begun = this.#begin(network, lease).catch(async (error: unknown) => {
      await watch.close();
      throw error;
    });
    this.#work = begun.catch(() => undefined);
    return begun;
  }

  async #begin(network: NetworkConfig, lease: Lease): Promise<void> {
    this.#requireInside(lease, network);
    // Never rejects, and need not wait for the device.
    const firewall = this.#options.firewall?.apply(subnetsOf(lease));
    await this.#backend.begin(lease);
    // Whoever reads the subnet file finds the rules in place.
    await firewall;
    try {
      await this.#writeSubnetFile();
    } catch (error) {
      // A full disk must not keep a host from its network when the file says the right thing already.
      if (!(await this.#subnetFileIsRight())) throw error;
      this.#logger.warn({}, messageOf(error));
    }
    const needsPort = this.dataplane === undefined || this.#backend.isWithoutPort;
    if (this.#options.peerProbes && needsPort && !this.#backend.isPassive) await this.#openProbePort();
    const families = networksOf(network).map(({ family }) => family);
    if (this.#options.enableForwarding === undefined) await this.#enableForwarding(families);
    else await this.#options.enableForwarding(families, this.interface.name);
    this.#logger.info(
      {
        subnet: subnetsOf(lease).join(' '),
        device: this.#backend.device,
        mtu: this.#backend.mtu,
        ...(this.#options.subnetFile === false ? {} : { subnetFile: this.#options.subnetFile }),
      },
      'ready',
    );
  }

  status(): OverlayStatus {
    const { keeper, network } = this.#state;
    const { subnetFile, durable, firewall } = this.#options;
    const tableOf = durable?.standingInSince;
    return {
      network,
      interface: this.interface,
      lease: this.lease,
      leaseHeld: this.#leaseHeld,
      device: this.#backend.device,
      device6: this.#backend.device6,
      mtu: this.#backend.mtu,
      subnetFile: subnetFile === false ? undefined : { path: subnetFile, written: this.#written },
      leases: Array.from(keeper.leases, ([key, peer]) => this.#describe(peer, keeper.refused.get(key)?.detail)),
      counts: keeper.counts,
      host: this.#state.watch.state(this.#backend),
      facts: this.#backend.facts,
      dataplane: this.#backend.stats,
      ...(firewall === undefined ? {} : { firewall: firewall.stats }),
      store: { ...keeper.store, ...(tableOf === undefined ? {} : { tableOf }) },
    };
  }

  async refresh(): Promise<void> {
    await this.#state.watch.look();
    // Behind what is queued, so that it never undoes a newer subnet.
    const written = this.#work.then(() => this.#writeSubnetFile());
    this.#work = written.catch(() => undefined);
    await written;
  }

  close(options: CloseOptions = {}): Promise<void> {
    this.#closing ??= this.#close(options);
    return this.#closing;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #close({ release = false, dismantle = false }: CloseOptions): Promise<void> {
    this.#stopping.abort();
    const keeper = this.#running?.keeper;
    // First of all, or what goes now would be put right.
    await this.#running?.watch.close();
    const end = release ? keeper?.release() : keeper?.close();
    const [, ended] = await Promise.allSettled([
      this.#backend.close(),
      end,
      this.#work,
      this.#options.firewall?.close(),
    ]);
    await this.#probePort?.[Symbol.asyncDispose]();
    if (dismantle) {
      await this.#backend.dismantle?.().catch((error: unknown) => this.#logger.warn({}, messageOf(error)));
    }
    if (ended.status === 'rejected') {
      this.#logger.warn({}, `the lease could not be given back: ${messageOf(ended.reason)}`);
    }
    await this.#options.durable?.[Symbol.asyncDispose]();
  }

  get #state(): { keeper: LeaseKeeper; network: NetworkConfig; lease: Lease; watch: HostWatch } {
    if (this.#running === undefined) throw new PodwireError('CLOSED', 'the overlay has not started yet');
    return this.#running;
  }

  #watchHost(network: NetworkConfig): HostWatch {
    const { runner, monitor, guard, select, followsRoutes } = this.#options;
    return new HostWatch({
      runner,
      monitor,
      guard,
      logger: this.#logger,
      networks: networksOf(network),
      underlay: this.interface,
      select,
      followsRoutes,
      own: () => ({ subnets: subnetsOf(this.#state.lease), device: this.#backend.device }),
      onMove: (next, changes) => {
        this.#logger.warn(
          { interface: next.name, why: next.why },
          `the underlay has changed, following it: ${changes}`,
        );
        this.#enqueue('follow the underlay', () => this.#followUnderlay(next));
      },
      onHostChanged: async () => {
        const before = this.#backend.ownAddresses.join(' ');
        await this.#backend.hostChanged();
        const { ownAddresses } = this.#backend;
        if (ownAddresses.join(' ') !== before) this.#state.keeper.setOwnAddresses(ownAddresses);
      },
    });
  }

  /** Pods keep their addresses; the other hosts hear of the new one as soon as the store has it. */
  async #followUnderlay(next: SelectedInterface): Promise<void> {
    const { keeper } = this.#state;
    await this.#backend.moveTo(next);
    await this.#writeSubnetFile();
    if (this.#probePort !== undefined) {
      await this.#probePort[Symbol.asyncDispose]();
      this.#probePort = undefined;
      await this.#openProbePort();
    }
    keeper.setAttributes(this.#backend.attributes, {
      ownAddresses: this.#backend.ownAddresses,
      owner: await this.#options.ownerFor(next),
    });
  }

  #makeListener(): LeaseKeeperListener {
    const logger = this.#logger;
    return {
      waiting: (error) => logger.warn({ code: error.code }, `waiting for a lease: ${error.message}`),
      acquired: (lease) => {
        this.#leaseHeld = lease.unconfirmed !== true;
        if (this.#leaseHeld) logger.info(leaseFields(lease), 'lease acquired');
        else logger.warn(leaseFields(lease), 'serving our last lease, the store confirms it when it is back');
      },
      renewed: (lease) => {
        const wasHeld = this.#leaseHeld;
        this.#leaseHeld = true;
        logger.info(leaseFields(lease), wasHeld ? 'lease renewed' : 'the store has confirmed our lease');
      },
      ownLost: (lease, state, holder) => {
        this.#leaseHeld = false;
        const by = holder === undefined ? {} : { holder: holder.attributes.publicIp.toString() };
        logger.error(
          { ...leaseFields(lease), ...by },
          state === 'replaced'
            ? 'another host has our subnet in the store: acquiring a lease again, the subnet is served meanwhile'
            : 'our lease is gone from the store: acquiring it again, the subnet is served meanwhile',
        );
      },
      ownRestored: (lease) => {
        this.#leaseHeld = true;
        logger.info(leaseFields(lease), 'lease acquired again, the subnet is the same');
      },
      ownChanged: (lease, _previous, config) => {
        this.#leaseHeld = true;
        logger.error(
          leaseFields(lease),
          'the old subnet could not be had again: moving to a new one, its pods lose their addresses',
        );
        this.#enqueue('change the subnet', () => this.#changeSubnet(lease, config));
      },
      snapshotApplied: (routes) => {
        if (!this.#snapshotSeen) logger.info({ routes: routes.size }, 'leases of the other hosts are known');
        this.#snapshotSeen = true;
        this.#backend.routesComplete();
      },
      added: (route, before) => this.#addRoute(route, before),
      removed: (route) => this.#removeRoute(route),
      refused: ({ reason, detail }) => logger.warn({ reason }, detail),
      storeDown: (error) =>
        logger.error({ code: error.code }, `the store is away, forwarding goes on: ${error.message}`),
      storeUp: () => logger.info({}, 'the store is back'),
      notice: (notice) => this.#onNotice(notice),
    };
  }

  #addRoute(route: DesiredRoute, before: DesiredRoute | undefined): void {
    const prefix = route.prefix.toString();
    const ignored = this.#backend.refusal(route.lease, route.prefix);
    if (ignored !== undefined) {
      const wasTold = this.#unrouted.get(prefix)?.reason === ignored;
      this.#unrouted.set(prefix, { state: 'ignored', reason: ignored });
      if (before !== undefined) this.#backend.removeRoute(route.prefix);
      if (!wasTold && !this.#backend.isPassive) {
        this.#logger.warn({ subnet: prefix }, `lease ignored: ${ignored}`);
      }
      return;
    }
    try {
      this.#backend.setRoute(route.prefix, route.lease);
      this.#unrouted.delete(prefix);
      if (this.#snapshotSeen) {
        const via = route.via.toString();
        this.#logger.info({ subnet: prefix, via }, before === undefined ? 'route added' : 'route changed');
      }
    } catch (error) {
      this.#unrouted.set(prefix, { state: 'failed', reason: messageOf(error) });
      this.#logger.error({ subnet: prefix }, `route not set: ${messageOf(error)}`);
    }
  }

  /** For the backend: a route that was taken could not be programmed after all, or (undefined) now is. */
  onRouteFault(prefix: Prefix, reason: string | undefined): void {
    const key = prefix.toString();
    if (reason === undefined) {
      this.#unrouted.delete(key);
      this.#logger.info({ subnet: key }, 'route set after all');
      return;
    }
    this.#unrouted.set(key, { state: 'failed', reason });
    this.#logger.error({ subnet: key }, `route not set: ${reason}`);
  }

  #removeRoute(route: DesiredRoute): void {
    const prefix = route.prefix.toString();
    this.#unrouted.delete(prefix);
    if (this.#backend.removeRoute(route.prefix)) {
      this.#logger.info({ subnet: prefix, via: route.via.toString() }, 'route removed');
    }
  }

  #describe(lease: Lease, refusal: string | undefined): OverlayLease {
    if (refusal !== undefined) return { lease, state: 'refused', reason: refusal };
    for (const subnet of subnetsOf(lease)) {
      const problem = this.#unrouted.get(subnet.toString());
      if (problem !== undefined) return { lease, ...problem };
    }
    return { lease, state: 'routed', ...this.#signsOfLife(lease) };
  }

  #signsOfLife(lease: Lease): Pick<OverlayLease, 'probe' | 'lastHeardMs'> {
    const address = underlayAddress(lease);
    const probe = this.#probePort?.of(address);
    const lastHeardMs = this.#probePort?.lastHeardMs(address);
    return { ...(probe === undefined ? {} : { probe }), ...(lastHeardMs === undefined ? {} : { lastHeardMs }) };
  }

  async #openProbePort(): Promise<void> {
    const { address, address6 } = this.interface;
    try {
      this.#probePort = await ProbePort.open({
        addresses: [address, address6].filter((each) => each !== undefined),
        peers: () => Array.from(this.#running?.keeper.routes.values() ?? [], ({ lease }) => underlayAddress(lease)),
        logger: this.#logger,
      });
    } catch (error) {
      this.#logger.warn({}, messageOf(error));
    }
  }

  #onNotice(notice: StoreNotice): void {
    switch (notice.kind) {
      // The keeper tells these as storeDown and storeUp.
      case 'down':
      case 'up':
        return;
      case 'foreign':
      case 'corrupt':
        this.#logger.warn({ path: notice.path }, notice.reason);
        return;
      case 'conflict':
        this.#logger.error(leaseFields(notice.lease), notice.reason);
        return;
      case 'degraded':
        this.#logger.warn({}, notice.reason);
    }
  }

  async #changeSubnet(lease: Lease, network: NetworkConfig): Promise<void> {
    const state = this.#state;
    this.#requireInside(lease, state.network, network);
    await this.#backend.changeSubnet(state.lease, lease, async () => {
      state.lease = lease;
      await this.#options.firewall?.apply(subnetsOf(lease));
      await this.#writeSubnetFile();
    });
    this.#logger.info(leaseFields(lease), 'moved to the new subnet');
  }

  /** The networks are routed to the device at the start: a config with others needs a restart, as with flanneld. */
  #requireInside(lease: Lease, routed: NetworkConfig, found: NetworkConfig = routed): void {
    const networks = networksOf(routed);
    if (subnetsOf(lease).every((subnet) => networks.some((network) => network.contains(subnet)))) return;
    throw new PodwireError(
      'INVALID_CONFIG',
      `the network config has changed from ${networks.join(' ')} to ${networksOf(found).join(' ')}: start the agent again to follow it`,
    );
  }

  /** Does `step` after everything queued before it, again and again until it works or the overlay is closed. */
  #enqueue(what: string, step: () => Promise<void>): void {
    const { signal } = this.#stopping;
    this.#work = this.#work.then(async () => {
      const backoff = new Backoff(RETRY);
      while (!signal.aborted) {
        try {
          return await step();
        } catch (error) {
          if (signal.aborted) return;
          this.#logger.error({}, `cannot ${what}, trying again: ${messageOf(error)}`);
          await pause(this.#options.clock, backoff.nextMs(), signal);
        }
      }
    });
  }

  get #subnetEnv(): SubnetEnv {
    const { network, lease } = this.#state;
    const env = { mtu: this.#backend.mtu, ipMasq: this.#options.ipMasq };
    const subnets = subnetsOf(lease);
    const subnet = subnets.find(({ family }) => family === 4);
    const ipv6Subnet = subnets.find(({ family }) => family === 6);
    return {
      ...env,
      ...(network.network === undefined || subnet === undefined ? {} : { network: network.network, subnet }),
      ...(network.ipv6Network === undefined || ipv6Subnet === undefined
        ? {}
        : { ipv6Network: network.ipv6Network, ipv6Subnet }),
    };
  }

  async #writeSubnetFile(): Promise<void> {
    const { subnetFile } = this.#options;
    if (subnetFile === false) return;
    this.#written = false;
    await writeSubnetEnv(subnetFile, this.#subnetEnv);
    this.#written = true;
  }

  async #subnetFileIsRight(): Promise<boolean> {
    const { subnetFile } = this.#options;
    if (subnetFile === false) return true;
    this.#written = await subnetEnvEquals(subnetFile, formatSubnetEnv(this.#subnetEnv));
    return this.#written;
  }

  async #enableForwarding(families: readonly Family[]): Promise<void> {
    const notes = await enableForwarding(families, this.interface.name);
    for (const { ok, text } of notes) {
      if (ok) this.#logger.info({}, text);
      else this.#logger.error({}, text);
    }
    if (notes.every(({ ok }) => ok)) await this.#state.watch.keepForwarding(families);
  }
}

/** Where a host is asked for a sign of life, whatever its lease carries. */
function underlayAddress({ attributes: { publicIp, publicIpv6 } }: Lease): Address {
  return publicIp.isUnspecified && publicIpv6 !== undefined ? publicIpv6 : publicIp;
}

function leaseFields(lease: Lease): { subnet: string; publicIp: string; expiresAt?: string } {
  return {
    subnet: subnetsOf(lease).join(' '),
    publicIp: publicAddress(lease.attributes).toString(),
    ...(lease.expiresAt === undefined ? {} : { expiresAt: lease.expiresAt.toISOString() }),
  };
}
