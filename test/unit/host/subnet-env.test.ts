import fc from 'fast-check';
import { mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import {
  checkSubnetEnvWritable,
  formatSubnetEnv,
  parseDotenv,
  readPreviousSubnets,
  writeSubnetEnv,
} from '../../../src/host/subnet-env.js';
import { Address, Prefix } from '../../../src/net/prefix.js';

const IPV4 = { network: Prefix.parse('10.42.0.0/16'), subnet: Prefix.parse('10.42.7.0/24') };
const IPV6 = { ipv6Network: Prefix.parse('2001:cafe:42::/56'), ipv6Subnet: Prefix.parse('2001:cafe:42:7::/64') };

let directory: string;
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'podwire-env-'));
});
afterEach(async () => {
  await rm(directory, { recursive: true });
});

describe('bytes', () => {
  test('IPv4', () => {
    expect(formatSubnetEnv({ ...IPV4, mtu: 1472, ipMasq: false })).toBe(
      'FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.7.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n',
    );
  });

  test('dual stack', () => {
    expect(formatSubnetEnv({ ...IPV4, ...IPV6, mtu: 1450, ipMasq: true })).toBe(
      'FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.7.1/24\n' +
        'FLANNEL_IPV6_NETWORK=2001:cafe:42::/56\nFLANNEL_IPV6_SUBNET=2001:cafe:42:7::1/64\n' +
        'FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n',
    );
  });
});

describe('file', () => {
  test('mode 0644 and directory 0755 whatever the umask, nothing left beside it', async () => {
    const path = join(directory, 'run', 'subnet.env');
    const umask = process.umask(0o077);
    try {
      await writeSubnetEnv(path, { ...IPV4, mtu: 1472, ipMasq: false });
    } finally {
      process.umask(umask);
    }
    expect((await stat(path)).mode & 0o7777).toBe(0o644);
    expect((await stat(join(directory, 'run'))).mode & 0o7777).toBe(0o755);
    expect(await readdir(join(directory, 'run'))).toEqual(['subnet.env']);
  });

  test('is replaced, not rewritten: a reader that has it open keeps the old bytes', async () => {
    const path = join(directory, 'subnet.env');
    await writeSubnetEnv(path, { ...IPV4, mtu: 1400, ipMasq: false });
    const before = (await stat(path)).ino;
    await writeSubnetEnv(path, { ...IPV4, mtu: 1472, ipMasq: false });
    expect((await stat(path)).ino).not.toBe(before);
    expect(await readFile(path, 'utf8')).toContain('FLANNEL_MTU=1472\n');
  });

  test('a directory that cannot be made is one line with the path, for the check and for the write', async () => {
    await writeFile(join(directory, 'file'), '');
    const path = join(directory, 'file', 'subnet.env');
    for (const attempt of [checkSubnetEnvWritable(path), writeSubnetEnv(path, { ...IPV4, mtu: 1, ipMasq: false })]) {
      await expect(attempt).rejects.toMatchObject({
        code: 'SYSTEM',
        message: expect.stringMatching(
          /^cannot write the subnet file .*\/file\/subnet\.env: E(NOTDIR|EXIST).*--subnet-file$/,
        ) as string,
      });
    }
  });

  test('a failed write leaves nothing beside the file', async () => {
    await mkdir(join(directory, 'subnet.env'));
    await expect(writeSubnetEnv(join(directory, 'subnet.env'), { ...IPV4, mtu: 1, ipMasq: false })).rejects.toThrow(
      /EISDIR|ENOTEMPTY|EEXIST/,
    );
    expect(await readdir(directory)).toEqual(['subnet.env']);
  });

  test('the check itself leaves nothing', async () => {
    await checkSubnetEnvWritable(join(directory, 'subnet.env'));
    expect(await readdir(directory)).toEqual([]);
  });
});

describe('previous subnets', () => {
  const previous = async (text: string): Promise<[string | undefined, string | undefined]> => {
    const path = join(directory, 'subnet.env');
    await writeFile(path, text);
    const { subnet, subnet6 } = await readPreviousSubnets(path);
    return [subnet?.toString(), subnet6?.toString()];
  };

  test.each([
    [
      'ours',
      'FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.7.1/24\nFLANNEL_MTU=1472\n',
      '10.42.7.0/24',
      undefined,
    ],
    ['dual stack', 'FLANNEL_SUBNET=10.42.7.1/24\nFLANNEL_IPV6_SUBNET=fd00:7::1/64\n', '10.42.7.0/24', 'fd00:7::/64'],
    [
      'quotes, export, colon, comments',
      '# x\nexport FLANNEL_SUBNET="10.42.7.1/24" # mine\nFLANNEL_IPV6_SUBNET: \'fd00:7::1/64\'\n',
      '10.42.7.0/24',
      'fd00:7::/64',
    ],
    ['Windows line ends', 'FLANNEL_SUBNET=10.42.7.1/24\r\n', '10.42.7.0/24', undefined],
    ['an invalid entry of a list is skipped', 'FLANNEL_SUBNET=nonsense,10.42.7.1/24\n', '10.42.7.0/24', undefined],
    ['more than one counts as none', 'FLANNEL_SUBNET=10.42.7.1/24,10.42.8.1/24\n', undefined, undefined],
    ['wrong family', 'FLANNEL_SUBNET=fd00::1/64\nFLANNEL_IPV6_SUBNET=10.1.1.1/24\n', undefined, undefined],
    ['empty', '', undefined, undefined],
    ['binary', '\0\xff=FLANNEL_SUBNET', undefined, undefined],
  ])('%s', async (_, text, subnet, subnet6) => {
    expect(await previous(text)).toEqual([subnet, subnet6]);
  });

  test('no file, or no directory, is no previous subnet', async () => {
    expect(await readPreviousSubnets(join(directory, 'none'))).toEqual({});
    await writeFile(join(directory, 'file'), '');
    expect(await readPreviousSubnets(join(directory, 'file', 'subnet.env'))).toEqual({});
  });

  test('a file that cannot be read is an error, not "none": the subnet must not change silently', async () => {
    await mkdir(join(directory, 'subnet.env'));
    await expect(readPreviousSubnets(join(directory, 'subnet.env'))).rejects.toThrow(
      /^cannot read the subnet file .*EISDIR/,
    );
  });

  test('what is written is read back, for every subnet', async () => {
    await fc.assert(
      fc.asyncProperty(fc.nat({ max: 0xffffffff }), fc.integer({ min: 8, max: 30 }), async (bits, length) => {
        const subnet = Prefix.of(Address.fromUint32(bits), length);
        const text = formatSubnetEnv({ network: Prefix.of(subnet.address, 8), subnet, mtu: 1472, ipMasq: true });
        expect((await previous(text))[0]).toBe(subnet.toString());
      }),
      { numRuns: 50 },
    );
  });

  test('no text makes the reader throw', () => {
    fc.assert(fc.property(fc.string({ unit: 'binary' }), (text) => void parseDotenv(text)));
  });
});
