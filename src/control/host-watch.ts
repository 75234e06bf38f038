/**
 * What a joined overlay watches on its host beside the backend's own device: forwarding, the underlay, bridges with
 * somebody else's pod addresses. One place for the lines that go to the log and for what the status tells.
 */
import type { Logger } from '../dataplane/logger.js';
import { messageOf } from '../errors.js';
import type { Runner } from '../host/exec.js';
import { forwardingSwitches } from '../host/forwarding.js';
import type { Guard, GuardStats } from '../host/guard.js';
import type { HostInterface } from '../host/interfaces.js';
import type { HostEvents, Monitor } from '../host/monitor.js';
import { strayPodAddresses } from '../host/pod-bridges.js';
import type { SelectedInterface } from '../host/select-interface.js';
import { UnderlayWatch } from '../host/underlay-watch.js';
import type { Family, Prefix } from '../net/prefix.js';

/** What is watched on the host, and what became of it. */
export interface HostState extends GuardStats {
  /** What is wrong and not podwire's to put right; one line each. */
  readonly problems: readonly string[];
  /** How often the data plane was opened again: its device was removed, or the underlay has changed. */
  readonly reopened: number;
}

export interface HostWatchOptions {
  readonly runner: Runner;
  readonly monitor: Monitor;
  readonly guard: Guard;
  readonly logger: Logger;
  readonly networks: readonly Prefix[];
  readonly underlay: SelectedInterface;
  readonly select: () => Promise<SelectedInterface>;
  /** The choice of the underlay hangs on a route. */
  readonly followsRoutes: boolean;
  /** This host's subnets, and the device that pods' packets leave through, at the moment of the call. */
  readonly own: () => { readonly subnets: readonly Prefix[]; readonly device: string };
  readonly onMove: (next: SelectedInterface, changes: string) => void;
  /** Addresses or routes of the host have changed. */
  readonly onHostChanged: () => Promise<void>;
}

/** Changes of the host within this time are looked at once. */
const GATHER_MS = 500;

export class HostWatch {
  readonly #options: HostWatchOptions;
  readonly #underlay: UnderlayWatch;
  readonly #unsubscribe: () => void;
  #strays: readonly string[] = [];
  #name: string;
  #timer: NodeJS.Timeout | undefined;
  #changing: Promise<void> = Promise.resolve();

  constructor(options: HostWatchOptions) {
    this.#options = options;
    this.#name = options.underlay.name;
    const { runner, monitor, logger, underlay, select, followsRoutes, onMove } = options;
    this.#underlay = new UnderlayWatch({
      runner,
      monitor,
      current: underlay,
      select,
      followsRoutes,
      isOurs: (device) => device === this.#ownDevice,
      onMove: (next, changes) => {
        this.#name = next.name;
        onMove(next, changes);
      },
      onLook: (interfaces) => this.#lookForStrays(interfaces),
      say: (level, fields, message) => logger[level](fields, message),
    });
    this.#unsubscribe = monitor.subscribe((events) => this.#onEvents(events));
  }

  /** Keeps forwarding switched on for these families from now on. */
  keepForwarding(families: readonly Family[]): Promise<void> {
    return this.#options.guard.keep('forwarding', { families: [], switches: forwardingSwitches(families) });
  }

  /** Chooses the underlay again, without an event. */
  look(): Promise<void> {
    return this.#underlay.look();
  }

  /** With what the backend says of itself. */
  state({ reopened, problems }: Pick<HostState, 'reopened' | 'problems'>): HostState {
    return {
      ...this.#options.guard.stats(),
      problems: [...this.#underlay.problems, ...this.#strays, ...problems],
      reopened,
    };
  }

  /** Ends the watching, and the guard and the monitor with it. */
  async close(): Promise<void> {
    clearTimeout(this.#timer);
    this.#unsubscribe();
    await Promise.allSettled([this.#underlay.close(), this.#options.guard.close(), this.#changing]);
    await this.#options.monitor.close();
  }

  /** The overlay's own device; undefined where the underlay's does its work. */
  get #ownDevice(): string | undefined {
    const { device } = this.#options.own();
    return device === this.#name ? undefined : device;
  }

  #onEvents(events: HostEvents): void {
    const device = this.#ownDevice;
    const isForeign = (names: ReadonlySet<string>): boolean => [...names].some((name) => name !== device);
    const matters =
      events.everything ||
      isForeign(events.links) ||
      isForeign(events.addresses) ||
      isForeign(events.routeDevices) ||
      events.destinations.size > events.routeDevices.size;
    if (!matters || this.#timer !== undefined) return;
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      this.#changing = this.#changing
        .then(() => this.#options.onHostChanged())
        .catch((error: unknown) => this.#options.logger.warn({}, `cannot look at the host: ${messageOf(error)}`));
    }, GATHER_MS);
  }

  #lookForStrays(interfaces: readonly HostInterface[]): void {
    const { own, networks, logger } = this.#options;
    const { subnets } = own();
    const device = this.#ownDevice;
    const strays = strayPodAddresses(interfaces, networks, subnets, (name) => name === device);
    for (const stray of strays) if (!this.#strays.includes(stray)) logger.error({}, stray);
    for (const stray of this.#strays) {
      if (!strays.includes(stray)) logger.info({}, `no more: ${stray.slice(0, stray.indexOf(','))}`);
    }
    this.#strays = strays;
  }
}
