import { describe, expect, it } from 'vitest';
import { root, run } from '../support/process.js';
import { missing } from '../support/requires.js';

describe.skipIf(missing({ files: ['dist/index.d.ts', 'dist/testing.d.ts'] }))('the declarations of the package', () => {
  it('compile for an embedder, libraries checked too', async () => {
    const { code, stdout } = await run(`${root}/node_modules/.bin/tsc`, ['-p', `${root}/test/types/tsconfig.json`]);
    expect(stdout).toBe('');
    expect(code).toBe(0);
  }, 60_000);
});
