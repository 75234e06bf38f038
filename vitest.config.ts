import { fileURLToPath } from 'node:url';
import { defineConfig } from 'vitest/config';

const built = (name: string): string => fileURLToPath(new URL(`./dist/${name}.js`, import.meta.url));

/** `import 'podwire'` in a test means the built package: its workers are files of dist/, as an embedder gets them. */
const resolve = {
  alias: [
    { find: /^podwire$/, replacement: built('index') },
    { find: /^podwire\/testing$/, replacement: built('testing') },
  ],
};

/** Forks, because raw-socket crashes in worker threads. */
const shared = {
  pool: 'forks' as const,
  server: { deps: { external: [/\/dist\//] } },
};

export default defineConfig({
  test: {
    projects: [
      {
        resolve,
        test: {
          ...shared,
          name: 'logic',
          include: ['test/{unit,property,contract,simulation,types}/**/*.test.ts'],
          sequence: { groupOrder: 0 },
        },
      },
      {
        resolve,
        test: {
          ...shared,
          name: 'kernel',
          include: ['test/{native,netns,interop}/**/*.test.ts'],
          // Namespaces, timing and CPU are shared by the whole machine: one file at a time, after the others.
          fileParallelism: false,
          sequence: { groupOrder: 1 },
          testTimeout: 60_000,
          hookTimeout: 60_000,
        },
      },
    ],
  },
});
