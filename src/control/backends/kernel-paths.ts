/**
 * What the kernel must know to carry packets by itself: device, addresses, and one path a prefix (a route, for vxlan
 * with its neighbour and FDB entry), gathered into one part of the host's {@link Guard}, which makes it so and keeps
 * it so.
 *
 * What an earlier run left for other prefixes stays until {@link KernelPaths.complete}: a restart loses no packet.
 */
import type { Logger } from '../../dataplane/logger.js';
import { messageOf, PodwireError } from '../../errors.js';
import type { DesiredFdbEntry, DesiredHost, DesiredNeighbour, DesiredRoute } from '../../host/desired.js';
import { routeCommand, routeKey } from '../../host/differences.js';
import { ipBatch, type Runner } from '../../host/exec.js';
import type { Guard } from '../../host/guard.js';
import type { Reconciliation } from '../../host/reconcile.js';
import {
  describeRoute,
  type KernelRoute,
  listRoutes,
  removeRoutes,
  ROUTE_PROTOCOL,
  routeSelector,
} from '../../host/routes.js';
import type { Family, Prefix } from '../../net/prefix.js';

/** How one prefix is reached. */
export interface KernelPath {
  readonly route: DesiredRoute;
  readonly neighbour?: DesiredNeighbour;
  readonly fdb?: DesiredFdbEntry;
}

/** What must be there whatever the peers are. */
export type KernelBase = Pick<DesiredHost, 'links' | 'addresses' | 'routes' | 'exclusive'>;

export interface KernelPathsOptions {
  readonly runner: Runner;
  readonly logger: Logger;
  readonly guard: Guard;
  /** Name of the guard's part. */
  readonly part: string;
  /** The pod networks: nothing outside them is ever touched. */
  readonly networks: readonly Prefix[];
  /** Foreign routes on this device with the number of a plain `ip route add`, as flanneld's, may be overwritten. */
  readonly underlay: string;
  /** Devices of living agents, whose routes are theirs. */
  readonly foreignDevices: ReadonlySet<string>;
  /** Hears why a prefix could not be programmed, and with undefined that it now is. */
  readonly onFault?: (prefix: Prefix, reason: string | undefined) => void;
  /** Turns the kernel's words into the operator's. */
  readonly explain?: (path: KernelPath, reason: string) => string;
  readonly onDeviceMade?: () => Promise<void>;
  /** Called before the kernel is told of changes, and when it refused some; may set paths. */
  readonly prepare?: () => Promise<void>;
}

/** The number of a plain `ip route add`. */
const PROTO_BOOT = '3';
/** As many changes at a time are made before everything is compared. */
const AT_ONCE = 256;
/** How many diverting routes are named one by one. */
const NAMED = 4;

interface Entry {
  readonly prefix: Prefix;
  readonly path: KernelPath;
  readonly text: string;
}

export class KernelPaths {
  readonly #options: KernelPathsOptions;
  readonly #families: readonly Family[];
  readonly #entries = new Map<string, Entry>();
  /** Faults by prefix text. */
  readonly #faults = new Map<string, string>();
  /** Prefixes that are not followed because another has their MAC, and why. */
  #conflicts: ReadonlyMap<string, string> = new Map();
  #base: KernelBase | undefined;
  /** Why the device or its addresses could not be set, from the latest comparison. */
  #baseFault: string | undefined;
  /** Paths as they were when the guard was told last, of prefixes that have changed since. */
  #changed = new Map<string, KernelPath | undefined>();
  #isProgrammed = false;
  #isComplete = false;
  #isCleared = false;
  #isAsked = false;
  #running: Promise<void> | undefined;
  #closed = false;

  constructor(options: KernelPathsOptions) {
    this.#options = options;
    this.#families = [...new Set(options.networks.map(({ family }) => family))];
  }

  get size(): number {
    return this.#entries.size;
  }

  /**
   * Sets device and addresses; from the first call on the kernel is programmed. Resolves when it is.
   *
   * @throws {PodwireError} `COMMAND_FAILED` when the device or its addresses are refused.
   */
  async setBase(base: KernelBase): Promise<void> {
    this.#base = base;
    this.#baseFault = undefined;
    await this.settle();
    if (this.#baseFault !== undefined) throw new PodwireError('COMMAND_FAILED', this.#baseFault);
  }

  /** True when that changed anything. */
  set(prefix: Prefix, path: KernelPath): boolean {
    const key = prefix.toString();
    const text = JSON.stringify(path);
    const before = this.#entries.get(key);
    if (before?.text === text) return false;
    if (!this.#changed.has(key)) this.#changed.set(key, before?.path);
    this.#entries.set(key, { prefix, path, text });
    this.#schedule();
    return true;
  }

  /** False when there was no such path. */
  delete(prefix: Prefix): boolean {
    const key = prefix.toString();
    const before = this.#entries.get(key);
    if (before === undefined) return false;
    this.#entries.delete(key);
    if (!this.#changed.has(key)) this.#changed.set(key, before.path);
    this.#faults.delete(key);
    this.#schedule();
    return true;
  }

  /** Every path has been set: what is there for other prefixes is left over and goes. */
  complete(): void {
    if (this.#isComplete) return;
    this.#isComplete = true;
    this.#schedule();
  }

  /** Resolves when everything set so far has been programmed or is a known fault; never rejects. */
  async settle(): Promise<void> {
    this.#schedule();
    await this.#running;
  }

  /** The kernel keeps what it has. */
  async close(): Promise<void> {
    this.#closed = true;
    await this.#running;
    await this.#options.guard.drop(this.#options.part);
  }

  /** After {@link close}: removes the routes of the paths and the devices of the base. */
  async dismantle(): Promise<void> {
    const { runner, logger, networks, foreignDevices } = this.#options;
    for (const { device } of this.#base?.links ?? []) {
      await runner('ip', ['link', 'del', 'dev', device]).catch((error: unknown) => {
        if (!/Cannot find device/.test(messageOf(error))) logger.warn({ device }, messageOf(error));
      });
    }
    const left: KernelRoute[] = [];
    for (const family of this.#families) {
      for (const route of await listRoutes(runner, family, ROUTE_PROTOCOL)) {
        const isInside = networks.some((network) => network.contains(route.destination));
        if (isInside && !foreignDevices.has(route.device)) left.push(route);
      }
    }
    await removeRoutes(runner, left);
  }

  /** Everything that is asked for while the guard is being told is in the next telling. */
  #schedule(): void {
    if (this.#closed || this.#base === undefined) return;
    this.#isAsked = true;
    this.#running ??= this.#run().finally(() => (this.#running = undefined));
  }

  async #run(): Promise<void> {
    while (this.#isAsked && !this.#closed) {
      // One turn of the event loop gathers a snapshot's leases.
      await new Promise((resolve) => setImmediate(resolve));
      await this.#options.prepare?.().catch((error: unknown) => {
        this.#options.logger.warn({}, `cannot tell which hosts are on the underlay's own link: ${messageOf(error)}`);
      });
      this.#isAsked = false;
      const { guard, part } = this.#options;
      const changed = this.#changed;
      this.#changed = new Map();
      const kept = guard.keep(part, this.#desired(), (result) => void this.#onPass(result));
      // The guard looks at everything, which takes a second with thousands of hosts: a few changes need not wait for it.
      if (this.#isProgrammed && changed.size <= AT_ONCE) await this.#hurry(changed);
      await kept;
      this.#isProgrammed = true;
      if (this.#isComplete && !this.#isCleared) {
        this.#isCleared = true;
        await this.#clearForeign().catch((error: unknown) => this.#options.logger.warn({}, messageOf(error)));
      }
    }
  }

  /** Makes some changes right away. What the kernel refuses here the guard finds, and says why. */
  async #hurry(changed: ReadonlyMap<string, KernelPath | undefined>): Promise<void> {
    const neighbours: string[] = [];
    const fdb: string[] = [];
    const routes: string[] = [];
    for (const [key, before] of changed) {
      const path = this.#entries.get(key)?.path;
      if (this.#conflicts.has(key)) continue;
      if (path === undefined) {
        if (before !== undefined) routes.push(`route del ${key} dev ${before.route.device} proto ${ROUTE_PROTOCOL}`);
        continue;
      }
      const { route, neighbour, fdb: entry } = path;
      if (neighbour !== undefined) {
        const { address, mac, device } = neighbour;
        neighbours.push(`neigh replace ${address.toString()} lladdr ${mac} dev ${device} nud permanent`);
      }
      if (entry !== undefined) {
        fdb.push(`fdb replace ${entry.mac} dev ${entry.device} dst ${entry.remote.toString()} self permanent`);
      }
      // Only what is ours already is replaced: another's route in its place is the guard's to judge.
      routes.push(routeCommand(before === undefined ? 'add' : 'replace', route));
    }
    const { runner } = this.#options;
    const batch = async (tool: 'ip' | 'bridge', commands: readonly string[]): Promise<void> => {
      if (commands.length === 0) return;
      await runner(tool, ['-force', '-batch', '-'], { input: `${commands.join('\n')}\n` }).catch(() => undefined);
    };
    await Promise.all([batch('ip', neighbours), batch('bridge', fdb)]);
    await batch('ip', routes);
  }

  #desired(): DesiredHost {
    const { networks, underlay, foreignDevices } = this.#options;
    const base = this.#base ?? {};
    const paths = this.#distinctPaths();
    const exclusive = base.exclusive ?? [];
    const isComplete = this.#isComplete;
    const isInside = ({ destination }: KernelRoute): boolean =>
      networks.some((network) => network.contains(destination));
    return {
      families: this.#families,
      ...base,
      // Until all leases are known, what stands for other prefixes is let be.
      exclusive: isComplete ? exclusive : [],
      routes: [...(base.routes ?? []), ...paths.map(({ route }) => route)],
      neighbours: paths.flatMap(({ neighbour }) => (neighbour === undefined ? [] : [neighbour])),
      fdb: paths.flatMap(({ fdb }) => (fdb === undefined ? [] : [fdb])),
      ownsRoute: (route) => isComplete && isInside(route) && !foreignDevices.has(route.device),
      mayDisplace: (route) =>
        exclusive.includes(route.device) ||
        (route.device === underlay && route.protocol === PROTO_BOOT) ||
        (route.protocol === String(ROUTE_PROTOCOL) && !foreignDevices.has(route.device)),
    };
  }

  /** An FDB entry leads to one host: of two that say to have the same MAC the first known is followed. */
  #distinctPaths(): KernelPath[] {
    const owners = new Map<string, string>();
    const conflicts = new Map<string, string>();
    const paths: KernelPath[] = [];
    for (const [text, { path }] of this.#entries) {
      const { fdb } = path;
      const remote = fdb?.remote.toString() ?? '';
      const owner = fdb === undefined ? undefined : owners.get(`${fdb.device} ${fdb.mac}`);
      if (fdb !== undefined && owner !== undefined && owner !== remote) {
        conflicts.set(text, `its VtepMAC ${fdb.mac} is also that of ${owner}: two hosts with the same MAC`);
        continue;
      }
      if (fdb !== undefined) owners.set(`${fdb.device} ${fdb.mac}`, remote);
      paths.push(path);
    }
    const before = this.#conflicts;
    this.#conflicts = conflicts;
    for (const [text, { prefix }] of this.#entries) {
      if (before.get(text) !== conflicts.get(text)) this.#options.onFault?.(prefix, conflicts.get(text));
    }
    return paths;
  }

  async #onPass({ made, failed }: Reconciliation): Promise<void> {
    const reasons = new Map(failed.map(({ change, reason }) => [change.key, reason]));
    const isBase = ({ kind, key }: { kind: string; key: string }): boolean =>
      kind === 'link' || kind === 'address' || (this.#base?.routes ?? []).some((route) => key === keyOf(route));
    this.#baseFault = failed.find(({ change }) => isBase(change))?.reason;
    for (const [text, { prefix, path }] of this.#entries) {
      if (this.#conflicts.has(text)) continue;
      const key = keysOf(path).find((candidate) => reasons.has(candidate));
      const found = key === undefined ? undefined : reasons.get(key);
      const reason = found === undefined ? undefined : (this.#options.explain?.(path, found) ?? found);
      if (this.#faults.get(text) === reason) continue;
      if (reason === undefined) this.#faults.delete(text);
      else this.#faults.set(text, reason);
      this.#options.onFault?.(prefix, reason);
    }
    if (made.some(({ kind, action }) => kind === 'link' && action === 'add')) await this.#options.onDeviceMade?.();
    // A next hop that was on the link may be behind a gateway now.
    if (failed.length > 0 && this.#options.prepare !== undefined) await this.#options.prepare().catch(() => undefined);
  }

  /** flanneld's routes carry no number of their own: on a device that we took over they are known by the device. */
  async #clearForeign(): Promise<void> {
    const { runner, logger, networks, underlay } = this.#options;
    const exclusive = this.#base?.exclusive ?? [];
    const wanted = new Set([...this.#entries.values()].map(({ path }) => keyOf(path.route)));
    const stale: KernelRoute[] = [];
    const diverting: KernelRoute[] = [];
    for (const family of this.#families) {
      for (const route of await listRoutes(runner, family)) {
        if (route.protocol !== PROTO_BOOT || !networks.some((network) => network.contains(route.destination))) continue;
        if (exclusive.includes(route.device)) {
          if (!wanted.has(keyOf(route))) stale.push(route);
        } else if (!wanted.has(keyOf(route)) && route.device === underlay) diverting.push(route);
      }
    }
    for (const route of stale) {
      await ipBatch(runner, [`route del ${routeSelector(route)}`]).catch((error: unknown) => {
        logger.warn({}, `${describeRoute(route)} was left by another agent and cannot be removed: ${messageOf(error)}`);
      });
    }
    if (stale.length > 0) logger.info({ removed: stale.length }, 'removed routes that another agent left');
    if (diverting.length > 0) {
      const named = diverting.slice(0, NAMED).map(describeRoute).join(', ');
      const more = diverting.length > NAMED ? ` and ${diverting.length - NAMED} more` : '';
      logger.warn({}, `routes inside the pod network that are not ours are left alone: ${named}${more}`);
    }
  }
}

function keyOf(route: Pick<DesiredRoute, 'destination' | 'metric'>): string {
  return `route ${routeKey(route)}`;
}

/** The keys that reconcile gives the changes of a path. */
function keysOf({ route, neighbour, fdb }: KernelPath): string[] {
  return [
    keyOf(route),
    `link ${route.device}`,
    ...(neighbour === undefined ? [] : [`neighbour ${neighbour.address.toString()} dev ${neighbour.device}`]),
    ...(fdb === undefined ? [] : [`fdb ${fdb.mac} dev ${fdb.device}`]),
  ];
}
