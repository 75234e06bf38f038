/**
 * The daemon: a lease store and a joined overlay, with a control socket, health checks and a service manager beside
 * them. It is the first embedder of `joinOverlay` and does nothing that another could not.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { joinOverlay } from '../control/join.js';
import { messageOf, PodwireError } from '../errors.js';
import { findFlanneld } from '../host/flanneld.js';
import { checkSystem } from '../host/system.js';
import type { LeaseStore, Logger, Overlay } from '../index.js';
import type { AgentConfig } from './config.js';
import { ControlSocket, TextAnswer } from './control-socket.js';
import { ConfigFollower } from './follow-config.js';
import { Health, problemsOf } from './health.js';
import { HttpServer, type HttpRoutes } from './http-server.js';
import { createMetrics } from './metrics.js';
import { needRestart, reloadSurroundings } from './reload.js';
import { agentStatus } from './status.js';
import { meterStore } from './store-meter.js';
import { openStore } from './stores.js';
import { ServiceManager } from './systemd.js';
import { VERSION } from './version.js';

/** Milliseconds between tries to follow a new network config. */
const FOLLOW_RETRY_MS = { first: 1_000, last: 30_000 };

export interface AgentSurroundings {
  readonly log: Logger & { level: string };
  /** Ends the agent, whether it is starting or running. */
  readonly signal: AbortSignal;
  /** Reads flags and environment again, for a reload. */
  readonly readConfig: () => Promise<AgentConfig>;
  /** `NOTIFY_SOCKET` and its like are taken out of it. */
  readonly environment: NodeJS.ProcessEnv;
  /** Called whenever the network is joined. */
  readonly onReady?: (() => void) | undefined;
}

/** How often the agent looks at itself when nobody asks; less often where that takes more than a 500th of the time. */
const LOOK_MS = 2_000;
const LONGEST_LOOK_MS = 10_000;
const LOOK_SHARE = 500;

export class Agent {
  readonly #surroundings: AgentSurroundings;
  readonly #log: Logger;
  readonly #manager: ServiceManager;
  readonly #health: Health;
  #config: AgentConfig;
  #store: LeaseStore | undefined;
  #overlay: Overlay | undefined;
  #follower: ConfigFollower | undefined;
  #onConfigChanged: () => void = () => undefined;
  #reloading: Promise<void> = Promise.resolve();
  #reloadWanted = false;
  /** A reload came while there was no overlay. */
  #reloadMissed = false;
  #problem: string | undefined;

  constructor(config: AgentConfig, surroundings: AgentSurroundings) {
    this.#config = config;
    this.#surroundings = surroundings;
    this.#log = surroundings.log;
    this.#manager = ServiceManager.fromEnvironment(surroundings.environment, { logger: surroundings.log });
    this.#health = new Health(() => this.#overlay?.status());
  }

  /**
   * Runs until the signal aborts, then stops in order: packets, servers, store. Nothing of ours is left on the host
   * then but the subnet file. Call it once.
   *
   * @returns `failed` when the data plane has failed while running and has logged why.
   * @throws {PodwireError} as {@link joinOverlay} and {@link HttpServer.open}; `DEVICE_IN_USE` when an agent for the
   *   same subnet file is alive.
   */
  async run(): Promise<'stopped' | 'failed'> {
    const { signal } = this.#surroundings;
    const config = this.#config;
    const startedAt = new Date();
    const closing: (() => PromiseLike<unknown>)[] = [];
    const stopping = (): void => this.#manager.stopping();
    signal.addEventListener('abort', stopping, { once: true });
    try {
      const { store, operations } = meterStore(await openStore(config.store));
      this.#store = store;
      closing.push(() => store[Symbol.asyncDispose]());
      this.#log.info({ version: VERSION, pid: process.pid, store: store.description }, 'podwire agent starts');
      for (const warning of config.warnings) this.#log.warn({}, warning);
      const flanneld = findFlanneld(config.subnetFile);
      if (flanneld !== undefined) {
        throw new PodwireError(
          'DEVICE_IN_USE',
          `flanneld (pid ${flanneld}) runs here with the same subnet file ${config.subnetFile}: stop it first (systemctl stop flanneld)`,
        );
      }
      await checkSystem();
      const metrics = createMetrics({
        version: VERSION,
        overlay: () => this.#overlay?.status(),
        store: () => store.metrics?.(),
        operations,
        ready: async () => (await this.#health.ready()).ok,
        maxPeers: config.metricsPeers,
      });
      const control = await ControlSocket.open(config.controlSocket, {
        '/metrics': async () => new TextAnswer(await metrics.handler()),
        '/v1/status': () =>
          this.#overlay === undefined
            ? undefined
            : agentStatus({ version: VERSION, pid: process.pid, startedAt }, this.#overlay.status()),
      });
      closing.push(() => control.close());
      const routes = { ...this.#health.routes, '/metrics': metrics.handler };
      if (config.health !== undefined) closing.push(await this.#serve(config.health, routes));
      closing.push(this.#keepLooking());
      closing.push(async () => await this.#overlay?.close({ release: config.releaseOnExit }));
      this.#follower = this.#followConfig(store);
      closing.push(async () => this.#follower?.close());
      for (let isFirst = true; ; isFirst = false) {
        const changed = new Promise<'changed'>((resolve) => (this.#onConfigChanged = () => resolve('changed')));
        const overlay = await this.#join(config, store, isFirst);
        this.#overlay = overlay;
        this.#health.forget();
        this.#manager.ready(this.#describe(overlay));
        this.#surroundings.onReady?.();
        // The start may have read the config before it was changed.
        if (this.#reloadMissed) void this.reload();
        const end = await Promise.race([
          overlay.closed.then(
            () => 'stopped' as const,
            () => 'failed' as const,
          ),
          aborted(signal).then(() => 'stopped' as const),
          changed,
        ]);
        if (end !== 'changed') return end;
        // The old one first and entirely: both may want the same device, port and routes.
        await overlay.close({ dismantle: true });
        this.#overlay = undefined;
      }
    } catch (error) {
      // A start that was called off is a clean stop.
      if (!signal.aborted) throw error;
      return 'stopped';
    } finally {
      signal.removeEventListener('abort', stopping);
      if (!signal.aborted) stopping();
      for (const close of closing.reverse()) await close();
    }
  }

  /** A first start that fails ends the agent; a network config that cannot be followed yet is tried again. */
  async #join(config: AgentConfig, store: LeaseStore, isFirst: boolean): Promise<Overlay> {
    const { signal } = this.#surroundings;
    for (let delayMs = FOLLOW_RETRY_MS.first; ; delayMs = Math.min(FOLLOW_RETRY_MS.last, delayMs * 2)) {
      try {
        return await joinOverlay(overlayOptions(config, store, this.#surroundings));
      } catch (error) {
        if (isFirst || signal.aborted) throw error;
        this.#log.error({}, `the new network config cannot be followed, trying again: ${messageOf(error)}`);
        await sleep(delayMs, undefined, { signal }).catch(() => undefined);
      }
    }
  }

  #followConfig(store: LeaseStore): ConfigFollower {
    return new ConfigFollower({
      store,
      log: this.#log,
      current: () => this.#overlay?.network,
      onChange: (changes) => {
        this.#log.warn(
          { changed: changes.join(', ') },
          'following the new network config: leaving the overlay and joining it again, packets are not carried meanwhile',
        );
        this.#onConfigChanged();
      },
    });
  }

  /**
   * Reads flags, environment, network config and underlay again and writes the subnet file. Never rejects; while one
   * reload runs, any number of further wishes are one more.
   */
  reload(): Promise<void> {
    if (!this.#reloadWanted) {
      this.#reloadWanted = true;
      this.#reloading = this.#reloading.then(() => {
        this.#reloadWanted = false;
        return this.#reload();
      });
    }
    return this.#reloading;
  }

  async #reload(): Promise<void> {
    if (this.#surroundings.signal.aborted) return;
    const overlay = this.#overlay;
    this.#log.info({}, 'SIGHUP: reading the configuration again');
    if (overlay !== undefined) this.#manager.reloading();
    await this.#readSettings();
    if (overlay === undefined || this.#store === undefined) {
      this.#log.info({}, 'the agent is starting: everything else is read when it has started');
      this.#reloadMissed = true;
      return;
    }
    this.#reloadMissed = false;
    // A change of it is a new overlay, which reads everything else as well.
    if ((await this.#follower?.look(true)) === true) return;
    await reloadSurroundings({ log: this.#log, store: this.#store, overlay });
    this.#health.forget();
    this.#log.info({}, 'the configuration was read again');
    this.#manager.ready(this.#describe(overlay));
  }

  async #readSettings(): Promise<void> {
    const { log, readConfig } = this.#surroundings;
    let config: AgentConfig;
    try {
      config = await readConfig();
    } catch (error) {
      log.error({}, `the settings cannot be followed, going on with the old ones: ${messageOf(error)}`);
      return;
    }
    const known = new Set(this.#config.warnings);
    for (const warning of config.warnings) if (!known.has(warning)) log.warn({}, warning);
    if (config.logLevel !== this.#config.logLevel) {
      log.info({ before: this.#config.logLevel, now: config.logLevel }, 'the log level has changed');
      log.level = config.logLevel;
    }
    const fixed = needRestart(this.#config, config);
    if (fixed.length > 0) {
      log.warn({ settings: fixed.join(', ') }, 'settings have changed: restart the agent to follow them');
    }
    this.#config = { ...this.#config, logLevel: config.logLevel, warnings: config.warnings };
  }

  async #serve(
    where: { readonly host: string; readonly port: number },
    routes: HttpRoutes,
  ): Promise<() => Promise<void>> {
    const server = await HttpServer.open(where.host, where.port, routes);
    this.#log.info(
      { host: where.host, port: server.port, paths: Object.keys(routes).join(' ') },
      'health checks are served',
    );
    return () => server.close();
  }

  /** Tells a change of readiness in the log and to the service manager, and gives signs of life. */
  #keepLooking(): () => Promise<void> {
    const { watchdogMs } = this.#manager;
    let watchdog: NodeJS.Timeout | undefined;
    if (watchdogMs !== undefined) {
      const sign = (): void => {
        if (this.#health.live().ok) this.#manager.alive();
      };
      sign();
      watchdog = setInterval(sign, watchdogMs / 2);
    }
    watchdog?.unref();
    let look: NodeJS.Timeout | undefined;
    const lookLater = (): void => {
      const delayMs = Math.min(LONGEST_LOOK_MS, Math.max(LOOK_MS, this.#health.costMs * LOOK_SHARE));
      look = setTimeout(() => void this.#look().finally(() => look !== undefined && lookLater()), delayMs).unref();
    };
    lookLater();
    return async () => {
      clearTimeout(look);
      look = undefined;
      clearInterval(watchdog);
    };
  }

  async #look(): Promise<void> {
    const overlay = this.#overlay;
    this.#manager.retry();
    this.#health.live();
    if (overlay === undefined) {
      this.#manager.status('starting: no network yet, the log says what is waited for');
      return;
    }
    const problem = problemsOf(await this.#health.ready());
    if (problem !== this.#problem) {
      if (problem === undefined) this.#log.info({}, 'ready again');
      else this.#log.warn({}, `not ready: ${problem}`);
      this.#problem = problem;
    }
    this.#manager.status(problem === undefined ? this.#describe(overlay) : `not ready: ${problem}`);
  }

  /** The line of `systemctl status`. */
  #describe(overlay: Overlay): string {
    const { lease, interface: underlay } = overlay;
    const subnets = [lease.subnet, lease.subnet6].filter((subnet) => subnet !== undefined).join(' ');
    return `${subnets} through ${overlay.network.backend.type} on ${underlay.name} (${underlay.why})`;
  }
}

function overlayOptions(
  config: AgentConfig,
  store: LeaseStore,
  { log, signal }: AgentSurroundings,
): Parameters<typeof joinOverlay>[0] {
  return {
    store,
    interface: config.interface,
    subnetFile: config.subnetFile,
    stateDirectory: config.stateDirectory,
    ipMasq: config.ipMasq,
    firewall: config.firewall,
    leaseTtlMs: config.leaseTtlMs,
    ...(config.renewMarginMs === undefined ? {} : { renewMarginMs: config.renewMarginMs }),
    ...(config.vxlanMode === undefined ? {} : { vxlanMode: config.vxlanMode }),
    ...(config.port === undefined ? {} : { port: config.port }),
    ...(Object.keys(config.peerSources).length === 0 ? {} : { peerSources: config.peerSources }),
    ...(config.txQueueLength === undefined ? {} : { txQueueLength: config.txQueueLength }),
    // As flanneld: whoever writes the config may come later. A directory is at hand and mended at once.
    waitForConfig: config.store.kind === 'etcd',
    dataplane: config.dataplane,
    logger: log,
    signal,
  };
}

function aborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve();
    else signal.addEventListener('abort', () => resolve(), { once: true });
  });
}
