/**
 * Routes to the other hosts' leases: what the lease keeper reports goes to the backend, and what became of each lease is
 * remembered for the status.
 */
import type { Logger } from '../dataplane/logger.js';
import { messageOf } from '../errors.js';
import type { Prefix } from '../net/prefix.js';
import type { Backend } from './backends/backend.js';
import type { DesiredRoute } from './desired-routes.js';
import { type Lease, subnetsOf } from './lease.js';
import type { OverlayLease } from './overlay.js';

export class OverlayRoutes {
  readonly #backend: Backend;
  readonly #logger: Logger;
  /** Prefixes of accepted leases that are not in the data plane, and why. */
  readonly #unrouted = new Map<string, { readonly state: 'ignored' | 'failed'; readonly reason: string }>();
  /** Routes of the first snapshot are told as a number. */
  #isComplete = false;

  constructor(backend: Backend, logger: Logger) {
    this.#backend = backend;
    this.#logger = logger;
  }

  /** All leases of the store have been given. @param count of the routes to other hosts. */
  complete(count: number): void {
    if (!this.#isComplete) this.#logger.info({ routes: count }, 'leases of the other hosts are known');
    this.#isComplete = true;
    this.#backend.routesComplete();
  }

  /** @param before what the prefix had. */
  add(route: DesiredRoute, before: DesiredRoute | undefined): void {
    const prefix = route.prefix.toString();
    const ignored = this.#backend.refusal(route.lease, route.prefix);
    if (ignored !== undefined) {
      const wasTold = this.#unrouted.get(prefix)?.reason === ignored;
      this.#unrouted.set(prefix, { state: 'ignored', reason: ignored });
      if (before !== undefined) this.#backend.removeRoute(route.prefix);
      if (!wasTold && this.#backend.isPassive !== true) {
        this.#logger.warn({ subnet: prefix }, `lease ignored: ${ignored}`);
      }
      return;
    }
    try {
      this.#backend.setRoute(route.prefix, route.lease);
      this.#unrouted.delete(prefix);
      if (this.#isComplete) {
        const via = route.via.toString();
        this.#logger.info({ subnet: prefix, via }, before === undefined ? 'route added' : 'route changed');
      }
    } catch (error) {
      this.#unrouted.set(prefix, { state: 'failed', reason: messageOf(error) });
      this.#logger.error({ subnet: prefix }, `route not set: ${messageOf(error)}`);
    }
  }

  remove(route: DesiredRoute): void {
    const prefix = route.prefix.toString();
    this.#unrouted.delete(prefix);
    if (this.#backend.removeRoute(route.prefix)) {
      this.#logger.info({ subnet: prefix, via: route.via.toString() }, 'route removed');
    }
  }

  /** A route that the backend took could not be programmed after all, or (undefined) now is. */
  fault(prefix: Prefix, reason: string | undefined): void {
    const key = prefix.toString();
    if (reason === undefined) {
      this.#unrouted.delete(key);
      this.#logger.info({ subnet: key }, 'route set after all');
      return;
    }
    this.#unrouted.set(key, { state: 'failed', reason });
    this.#logger.error({ subnet: key }, `route not set: ${reason}`);
  }

  /** @param refusal why the lease is not followed by any backend, if so. */
  describe(lease: Lease, refusal: string | undefined): OverlayLease {
    if (refusal !== undefined) return { lease, state: 'refused', reason: refusal };
    for (const subnet of subnetsOf(lease)) {
      const problem = this.#unrouted.get(subnet.toString());
      if (problem !== undefined) return { lease, ...problem };
    }
    return { lease, state: 'routed' };
  }
}
