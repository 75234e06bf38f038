import type { Guard, GuardedState, GuardStats } from '../../src/host/guard.js';
import type { HostEvents, Monitor, MonitorStats } from '../../src/host/monitor.js';

const NOTHING: HostEvents = {
  links: new Set(),
  addresses: new Set(),
  destinations: new Set(),
  routeDevices: new Set(),
  neighbours: new Set(),
  forwarding: false,
  everything: false,
};

/** A monitor that hears nothing but what the test says. */
export class QuietMonitor implements Monitor {
  readonly #listeners = new Set<(events: HostEvents) => void>();
  closed = false;

  listen(): void {}

  subscribe(listener: (events: HostEvents) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  stats(): MonitorStats {
    return { running: !this.closed, restarts: 0, overruns: 0 };
  }

  async close(): Promise<void> {
    this.closed = true;
  }

  say(events: Partial<HostEvents>): void {
    for (const listener of this.#listeners) listener({ ...NOTHING, ...events });
  }
}

/** A guard that only remembers what it was asked to keep. */
export class QuietGuard implements Guard {
  readonly parts = new Map<string, GuardedState>();
  closed = false;

  async keep(part: string, desired: GuardedState): Promise<void> {
    this.parts.set(part, desired);
  }

  async drop(part: string): Promise<void> {
    this.parts.delete(part);
  }

  stats(): GuardStats {
    return {
      driftRepaired: { link: 0, address: 0, route: 0, neighbour: 0, fdb: 0, switch: 0 },
      lastRepair: undefined,
      failing: [],
      fought: [],
      checks: 0,
      monitor: { running: true, restarts: 0, overruns: 0 },
    };
  }

  async close(): Promise<void> {
    this.closed = true;
  }
}
