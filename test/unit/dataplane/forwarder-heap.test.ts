import { describe, expect, it } from 'vitest';
import { ok, root } from '../../support/process.js';
import { missing } from '../../support/requires.js';

/** Far below one byte a row: what the engine itself allocates now and then (compiled code, feedback). */
const MOST_BYTES = 256 * 1024;
const ROWS = 1_000_000;

describe.skipIf(missing({ files: ['dist/testing.js'] }))('the forwarder on the heap', () => {
  it('allocates nothing for a packet, whatever becomes of it', async () => {
    const program = `${root}/test/unit/dataplane/forwarder-heap.mjs`;
    const output = await ok(process.execPath, ['--expose-gc', program]);
    const kinds = JSON.parse(output) as Record<string, { rows: number; bytes: number; collections: number }>;
    expect(Object.keys(kinds).length).toBeGreaterThanOrEqual(14);
    for (const [kind, { rows, bytes, collections }] of Object.entries(kinds)) {
      expect(rows, kind).toBe(ROWS);
      expect(collections, `collections while '${kind}'`).toBe(0);
      expect(bytes, `bytes for ${ROWS} rows of '${kind}'`).toBeLessThan(MOST_BYTES);
    }
  }, 60_000);
});
