/**
 * Whether the agent lives, and whether this host's pods have their network: flanneld's two questions (contract 9.3),
 * answered from what the kernel says now.
 *
 * `/healthz` answers as soon as the agent runs, also while it waits for the store or the network config. It turns bad
 * when no worker has run for {@link DEAD_AFTER_MS}: then a restart helps. A blocked event loop answers nothing at all,
 * which a prober counts as bad too.
 *
 * `/readyz` is bad until packets can pass, and again when the device, its route, the underlay address, every worker,
 * the lease or the subnet file is gone, or something else on the host cannot be put right. The store being away is no reason: packets pass without it. With `?verbose`
 * both say what was looked at, one line each.
 */
import { stat } from 'node:fs/promises';
import { networkInterfaces } from 'node:os';
import { networksOf } from '../control/network-config.js';
import { errnoOf, messageOf } from '../errors.js';
import { deviceExists, hasRoute } from '../host/proc-net.js';
import type { OverlayStatus } from '../index.js';
import { Address } from '../net/prefix.js';
import type { HttpAnswer, HttpRoutes } from './http-server.js';

export const DEAD_AFTER_MS = 30_000;
/** An answer is as old as this at most: probes of several clients cost one look. */
export const CACHE_MS = 1_000;

export interface Check {
  readonly name: string;
  /** One clause: why it is bad. Undefined when it is good. */
  readonly problem: string | undefined;
}

export interface HealthReport {
  readonly ok: boolean;
  readonly checks: readonly Check[];
}

/** What the kernel and the disk are asked; replaced in tests. */
export interface HealthSeams {
  readonly deviceExists: typeof deviceExists;
  readonly hasRoute: typeof hasRoute;
  readonly networkInterfaces: typeof networkInterfaces;
  readonly fileExists: (path: string) => Promise<boolean>;
  /** Milliseconds, monotonic. */
  readonly now: () => number;
}

const REAL: HealthSeams = {
  deviceExists,
  hasRoute,
  networkInterfaces,
  fileExists,
  now: () => performance.now(),
};

export class Health {
  /** `/healthz` and `/readyz`. */
  readonly routes: HttpRoutes;
  readonly #status: () => OverlayStatus | undefined;
  readonly #seams: HealthSeams;
  #workersSeenAt: number;
  #costMs = 0;
  #latest: { readonly at: number; readonly report: Promise<HealthReport> } | undefined;

  /** @param status undefined until the overlay has begun. */
  constructor(status: () => OverlayStatus | undefined, seams: Partial<HealthSeams> = {}) {
    this.#status = status;
    this.#seams = { ...REAL, ...seams };
    this.#workersSeenAt = this.#seams.now();
    this.routes = {
      '/healthz': (query) => answer(this.live(), query, 'flanneld is running', undefined),
      '/readyz': async (query) => answer(await this.ready(), query, 'flanneld is ready', 'flanneld is not ready yet'),
    };
  }

  live(): HealthReport {
    const now = this.#seams.now();
    const workers = this.#read()?.dataplane?.workers;
    if (workers === undefined || workers.some(({ state }) => state === 'running')) this.#workersSeenAt = now;
    const deadMs = now - this.#workersSeenAt;
    const problem =
      deadMs < DEAD_AFTER_MS ? undefined : `no worker has run for ${Math.floor(deadMs / 1_000)} s: restart the agent`;
    return report([{ name: 'workers', problem }]);
  }

  ready(): Promise<HealthReport> {
    const now = this.#seams.now();
    if (this.#latest === undefined || now - this.#latest.at >= CACHE_MS) {
      this.#latest = { at: now, report: this.#look() };
    }
    return this.#latest.report;
  }

  /** How long the latest look has held the event loop up, in milliseconds: it grows with the number of hosts. */
  get costMs(): number {
    return this.#costMs;
  }

  /** Makes the next {@link ready} look again. */
  forget(): void {
    this.#latest = undefined;
  }

  /** Undefined while there is no overlay, also in the moment when one ends. */
  #read(): OverlayStatus | undefined {
    try {
      return this.#status();
    } catch {
      return undefined;
    }
  }

  async #look(): Promise<HealthReport> {
    const before = this.#seams.now();
    const status = this.#read();
    this.#costMs = this.#seams.now() - before;
    if (status === undefined) return report([{ name: 'start', problem: 'the agent is starting' }]);
    const checks: readonly [name: string, look: () => string | undefined | Promise<string | undefined>][] = [
      ['device', () => this.#device(status)],
      ['route', () => this.#route(status)],
      ['underlay', () => this.#underlay(status)],
      ['workers', () => this.#workers(status)],
      ['lease', () => lease(status)],
      ['host', () => host(status)],
      ['subnet file', () => this.#subnetFile(status)],
    ];
    return report(
      await Promise.all(
        checks.map(async ([name, look]) => {
          try {
            return { name, problem: await look() };
          } catch (error) {
            return { name, problem: `cannot be looked at: ${messageOf(error)}` };
          }
        }),
      ),
    );
  }

  /** The kernel lists a device with its addresses only while it is up. */
  async #device({ device, device6 = device }: OverlayStatus): Promise<string | undefined> {
    const interfaces = this.#seams.networkInterfaces();
    const missing = [device, device6].find((name) => interfaces[name] === undefined);
    if (missing === undefined) return undefined;
    return (await this.#seams.deviceExists(missing))
      ? `${missing} is down or has no address`
      : `the device ${missing} is gone`;
  }

  /** With an engine of ours every pod network has one route to its device. */
  async #route({ device, device6 = device, dataplane, network }: OverlayStatus): Promise<string | undefined> {
    if (dataplane === undefined) return undefined;
    for (const prefix of networksOf(network)) {
      const own = prefix.family === 4 ? device : device6;
      if (!(await this.#seams.hasRoute(prefix, own))) return `${prefix.toString()} is not routed to ${own}`;
    }
    return undefined;
  }

  #underlay({ interface: underlay }: OverlayStatus): string | undefined {
    const addresses = this.#seams.networkInterfaces()[underlay.name];
    if (addresses === undefined) return `${underlay.name} is down, gone or without an address`;
    for (const address of [underlay.address, underlay.address6]) {
      if (address === undefined) continue;
      const isThere = addresses.some((entry) => Address.tryParse(entry.address)?.equals(address));
      if (!isThere) return `${underlay.name} has no longer the address ${address.toString()}`;
    }
    return undefined;
  }

  #workers({ dataplane }: OverlayStatus): string | undefined {
    if (dataplane === undefined || dataplane.workers.some(({ state }) => state === 'running')) return undefined;
    return `no worker runs (${dataplane.workers.map(({ state }) => state).join(', ')})`;
  }

  async #subnetFile({ subnetFile }: OverlayStatus): Promise<string | undefined> {
    if (subnetFile === undefined) return undefined;
    if (!subnetFile.written) return `${subnetFile.path} could not be written`;
    return (await this.#seams.fileExists(subnetFile.path)) ? undefined : `${subnetFile.path} is gone`;
  }
}

/** The problems as one line, or undefined. */
export function problemsOf({ checks }: HealthReport): string | undefined {
  const bad = checks.filter(({ problem }) => problem !== undefined);
  return bad.length === 0 ? undefined : bad.map(({ problem }) => problem).join('; ');
}

function report(checks: readonly Check[]): HealthReport {
  return { ok: checks.every(({ problem }) => problem === undefined), checks };
}

function lease({ lease: own, leaseHeld }: OverlayStatus): string | undefined {
  const subnet = own.subnet.toString();
  if (!leaseHeld) return `the lease of ${subnet} is lost and being acquired again`;
  if (own.expiresAt === undefined || own.expiresAt.getTime() > Date.now()) return undefined;
  return `the lease of ${subnet} has expired and could not be renewed`;
}

/** What should be true on this host and could not be put right, such as a route that the kernel refuses. */
function host({ host: { failing } }: OverlayStatus): string | undefined {
  return failing.length === 0 ? undefined : `not as it must be: ${failing.slice(0, 4).join(', ')}`;
}

async function fileExists(path: string): Promise<boolean> {
  try {
    await stat(path);
    return true;
  } catch (error) {
    if (errnoOf(error) === 'ENOENT' || errnoOf(error) === 'ENOTDIR') return false;
    throw error;
  }
}

/** flanneld's bytes, without a final newline. @param bad undefined: what is wrong is the text. */
function answer(found: HealthReport, query: URLSearchParams, good: string, bad: string | undefined): HttpAnswer {
  const text = found.ok ? good : (bad ?? `podwire is not healthy: ${problemsOf(found) ?? ''}`);
  const status = found.ok ? 200 : 503;
  if (!query.has('verbose')) return { status, body: text };
  const lines = found.checks.map(({ name, problem }) =>
    problem === undefined ? `[+] ${name}` : `[-] ${name}: ${problem}`,
  );
  return { status, body: `${[...lines, text].join('\n')}\n` };
}
