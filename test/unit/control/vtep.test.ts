import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { vtepMac, type VtepIdentity } from '../../../src/control/backends/vtep.js';
import { Address, MacAddress } from '../../../src/net/prefix.js';

describe('the hardware address of the own tunnel end point', () => {
  let directory: string;
  let warnings: string[];
  const theirs = MacAddress.parse('0e:11:22:33:44:55');

  beforeEach(async () => {
    directory = await mkdtemp(join(tmpdir(), 'pwvtep-'));
    warnings = [];
  });

  afterEach(() => rm(directory, { recursive: true, force: true }));

  const identity = (more: Partial<VtepIdentity> = {}): VtepIdentity => ({
    vni: 1,
    family: 4,
    publicIp: Address.parse('192.0.2.1'),
    state: join(directory, 'agent'),
    logger: {
      debug: () => undefined,
      info: () => undefined,
      warn: (_fields, message) => void warnings.push(message),
      error: () => undefined,
    },
    ...more,
  });

  test('is the same after a reboot, without a file, and another for another address, VNI and family', async () => {
    const first = await vtepMac(identity(), undefined);
    expect((await vtepMac(identity(), undefined)).equals(first)).toBe(true);
    expect(first.bytes[0]! & 3).toBe(2);
    expect(await readdir(directory)).toEqual([]);
    const others = await Promise.all([
      vtepMac(identity({ publicIp: Address.parse('192.0.2.2') }), undefined),
      vtepMac(identity({ vni: 2 }), undefined),
      vtepMac(identity({ family: 6 }), undefined),
    ]);
    expect(new Set([first, ...others].map(String)).size).toBe(4);
  });

  test('of a device that is there is kept beyond the device', async () => {
    expect(String(await vtepMac(identity(), theirs))).toBe(String(theirs));
    expect(String(await vtepMac(identity(), undefined))).toBe(String(theirs));
    expect(await readFile(join(directory, 'agent.vtep-1-ipv4'), 'utf8')).toBe(`${String(theirs)}\n`);
  });

  test('a file that is damaged is told and not used', async () => {
    await writeFile(join(directory, 'agent.vtep-1-ipv4'), 'nonsense');
    const derived = await vtepMac(identity({ state: undefined }), undefined);
    expect((await vtepMac(identity(), undefined)).equals(derived)).toBe(true);
    expect(warnings).toEqual([expect.stringMatching(/^the kept VtepMAC cannot be used: /)]);
  });

  test('one that cannot be kept is told, and used', async () => {
    await writeFile(join(directory, 'file'), '');
    const state = join(directory, 'file', 'agent');
    expect(String(await vtepMac(identity({ state }), theirs))).toBe(String(theirs));
    expect(warnings.at(-1)).toMatch(/cannot be kept, after a reboot it will be another/);
  });
});
