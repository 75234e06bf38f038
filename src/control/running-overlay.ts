/**
 * A joined overlay at work: follows what the lease keeper reports with routes, addresses and the subnet file, and what
 * happens on the host.
 *
 * The keeper's callbacks are synchronous; what takes time (a changed subnet) is queued and done one after the other,
 * and tried again until it works.
 */
import type { Dataplane } from '../dataplane/dataplane.js';
import type { Logger } from '../dataplane/logger.js';
import { messageOf, PodwireError } from '../errors.js';
import type { Runner } from '../host/exec.js';
import { enableForwarding } from '../host/forwarding.js';
import type { Guard } from '../host/guard.js';
import type { Monitor } from '../host/monitor.js';
import type { SelectedInterface } from '../host/select-interface.js';
import type { Family, Prefix } from '../net/prefix.js';
import type { ReopeningBackend } from './backends/reopening.js';
import { Backoff, type Clock, pause } from './clock.js';
import type { DurableStore } from './durable-store.js';
import type { OverlayFirewall } from './firewall.js';
import { HostWatch } from './host-watch.js';
import { type Lease, publicAddress, sameSubnets, type StoreNotice, subnetsOf } from './lease.js';
import type { LeaseKeeper } from './lease-keeper.js';
import type { LeaseKeeperListener } from './lease-listener.js';
import { type NetworkConfig, networksOf } from './network-config.js';
import type { CloseOptions, Overlay, OverlayStatus } from './overlay.js';
import { OverlayRoutes } from './overlay-routes.js';
import { SignsOfLife } from './signs-of-life.js';
import { SubnetFile } from './subnet-file.js';

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
  readonly #routes: OverlayRoutes;
  readonly #subnetFile: SubnetFile;
  readonly #signs: SignsOfLife;
  readonly #stopping = new AbortController();
  #running: { keeper: LeaseKeeper; network: NetworkConfig; lease: Lease; watch: HostWatch } | undefined;
  #leaseHeld = true;
  #work: Promise<void> = Promise.resolve();
  #closing: Promise<void> | undefined;

  constructor(options: RunningOverlayOptions) {
    this.#options = options;
    this.#backend = options.backend;
    this.#logger = options.logger;
    this.closed = options.backend.closed;
    this.#routes = new OverlayRoutes(options.backend, options.logger);
    this.#subnetFile = new SubnetFile(options.subnetFile, options.ipMasq, () => {
      const { network, lease } = this.#state;
      return { network, lease, mtu: this.#backend.mtu };
    });
    this.#signs = new SignsOfLife(
      () => Array.from(this.#running?.keeper.routes.values() ?? [], ({ lease }) => lease),
      options.logger,
    );
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
    await this.#backend.begin(lease, async () => {
      // Whoever reads the subnet file finds the rules in place.
      await firewall;
      await this.#writeSubnetFile();
      // Not before: its programs would compete with what a host's pods wait for.
      this.#options.monitor.listen();
    });
    const needsPort = this.dataplane === undefined || this.#backend.isWithoutPort;
    if (this.#options.peerProbes && needsPort && !this.#backend.isPassive) await this.#signs.open(this.interface);
    const families = networksOf(network).map(({ family }) => family);
    if (this.#options.enableForwarding === undefined) await this.#enableForwarding(families);
    else await this.#options.enableForwarding(families, this.interface.name);
    this.#logger.info(
      {
        subnet: subnetsOf(lease).join(' '),
        device: this.#backend.device,
        mtu: this.#backend.mtu,
        ...(this.#subnetFile.state === undefined ? {} : { subnetFile: this.#subnetFile.state.path }),
      },
      'ready',
    );
  }

  async #writeSubnetFile(): Promise<void> {
    try {
      await this.#subnetFile.write();
    } catch (error) {
      // A full disk must not keep a host from its network when the file says the right thing already.
      if (!(await this.#subnetFile.isRight())) throw error;
      this.#logger.warn({}, messageOf(error));
    }
  }

  status(): OverlayStatus {
    const { keeper, network } = this.#state;
    const { durable, firewall } = this.#options;
    const tableOf = durable?.standingInSince;
    return {
      network,
      interface: this.interface,
      lease: this.lease,
      leaseHeld: this.#leaseHeld,
      device: this.#backend.device,
      device6: this.#backend.device6,
      mtu: this.#backend.mtu,
      subnetFile: this.#subnetFile.state,
      leases: Array.from(keeper.leases, ([key, peer]) => ({
        ...this.#routes.describe(peer, keeper.refused.get(key)?.detail),
        ...this.#signs.of(peer),
      })),
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
    const written = this.#work.then(() => this.#subnetFile.write());
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
    await this.#signs.close();
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
    await this.#subnetFile.write();
    if (this.#signs.isOpen) await this.#signs.open(next);
    keeper.setAttributes(this.#backend.attributes, {
      ownAddresses: this.#backend.ownAddresses,
      owner: await this.#options.ownerFor(next),
    });
  }

  /** For the backend: a route that was taken could not be programmed after all, or (undefined) now is. */
  onRouteFault(prefix: Prefix, reason: string | undefined): void {
    this.#routes.fault(prefix, reason);
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
      snapshotApplied: (routes) => this.#routes.complete(routes.size),
      added: (route, before) => this.#routes.add(route, before),
      removed: (route) => this.#routes.remove(route),
      refused: ({ reason, detail }) => logger.warn({ reason }, detail),
      storeDown: (error) =>
        logger.error({ code: error.code }, `the store is away, forwarding goes on: ${error.message}`),
      storeUp: () => logger.info({}, 'the store is back'),
      notice: (notice) => this.#onNotice(notice),
    };
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
      await this.#subnetFile.write();
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

  async #enableForwarding(families: readonly Family[]): Promise<void> {
    const notes = await enableForwarding(families, this.interface.name);
    for (const { ok, text } of notes) {
      if (ok) this.#logger.info({}, text);
      else this.#logger.error({}, text);
    }
    if (notes.every(({ ok }) => ok)) await this.#state.watch.keepForwarding(families);
  }
}

function leaseFields(lease: Lease): { subnet: string; publicIp: string; expiresAt?: string } {
  return {
    subnet: subnetsOf(lease).join(' '),
    publicIp: publicAddress(lease.attributes).toString(),
    ...(lease.expiresAt === undefined ? {} : { expiresAt: lease.expiresAt.toISOString() }),
  };
}
