import { ManualClock } from '../../../src/control/clock.js';
import { MemoryStoreServer } from '../../../src/control/stores/memory.js';
import { storeAdminContract } from './admin.js';
import { leaseStoreContract } from './contract.js';
import type { StoreHarness } from './harness.js';

async function make(): Promise<StoreHarness> {
  const clock = new ManualClock();
  const server = new MemoryStoreServer({ clock });
  return {
    open: (onNotice) => server.open(onNotice && { onNotice }),
    setConfig: async (text) => {
      server.config = text;
    },
    put: async (key, value) => server.put(key, value),
    get: async (key) => server.entries().get(key),
    remove: async (key) => void server.delete(key),
    keys: async () => [...server.entries().keys()].sort(),
    advance: (ms) => clock.advance(ms),
    now: () => clock.now(),
    [Symbol.asyncDispose]: async () => undefined,
  };
}

leaseStoreContract('memory', make);
storeAdminContract('memory', make);
