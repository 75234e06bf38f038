import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { hostIdentity } from '../../../src/host/identity.js';
import { Address } from '../../../src/net/prefix.js';

const HERE = Address.parse('10.0.0.1');
const ID = '0123456789abcdef0123456789abcdef';

let directory: string;
beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'pw-id-'));
});
afterAll(async () => {
  await rm(directory, { recursive: true });
});

async function identityOf(content: string, address = HERE): Promise<string | undefined> {
  const file = join(directory, 'machine-id');
  await writeFile(file, content);
  return hostIdentity(address, [join(directory, 'none'), file]);
}

test('is the same for the same host, also in upper case and without the final line end', async () => {
  const identity = await identityOf(`${ID}\n`);
  expect(identity).toMatch(/^[0-9a-f]{32}$/);
  expect(await identityOf(ID.toUpperCase())).toBe(identity);
});

test('never shows the machine id, and differs for a clone with another address and for another machine', async () => {
  const identity = await identityOf(ID);
  expect(identity).not.toContain(ID.slice(0, 8));
  expect(await identityOf(ID, Address.parse('10.0.0.2'))).not.toBe(identity);
  expect(await identityOf(ID.replace('0', '1'))).not.toBe(identity);
});

test.each([[''], ['uninitialized\n'], ['0123']])('there is none for the machine id %j', async (content) => {
  expect(await identityOf(content)).toBeUndefined();
});
