import { mkdir, mkdtemp, readdir, readFile, rename, rm, unlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ManualClock } from '../../../src/control/clock.js';
import { directoryStore } from '../../../src/control/stores/directory.js';
import { storeAdminContract } from './admin.js';
import { leaseStoreContract } from './contract.js';
import type { StoreHarness } from './harness.js';

async function make(): Promise<StoreHarness> {
  const path = await mkdtemp(join(tmpdir(), 'podwire-store-'));
  const subnets = join(path, 'subnets');
  const clock = new ManualClock();
  let writes = 0;
  return {
    open: (onNotice) => directoryStore(path, { clock, ...(onNotice && { onNotice }) }),
    setConfig: async (text) => {
      if (text === undefined) await unlink(join(path, 'config'));
      else await writeFile(join(path, 'config'), text);
    },
    put: async (key, value) => {
      await mkdir(subnets, { recursive: true });
      // Whole at once, as a careful writer does it; half-written files have tests of their own.
      const draft = join(path, `draft${writes++}`);
      await writeFile(draft, value);
      await rename(draft, join(subnets, key));
    },
    get: (key) => readFile(join(subnets, key), 'utf8').catch(() => undefined),
    remove: (key) => unlink(join(subnets, key)),
    keys: async () => (await readdir(subnets).catch((): string[] => [])).sort(),
    advance: (ms) => clock.advance(ms),
    now: () => clock.now(),
    [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true }),
  };
}

leaseStoreContract('directory', make);
storeAdminContract('directory', make);
