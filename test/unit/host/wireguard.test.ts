import { mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import {
  generateWireguardKeys,
  isWireguardKey,
  wireguardConfig,
  wireguardKeysOf,
  wireguardPublicKey,
} from '../../../src/host/wireguard.js';
import { Prefix } from '../../../src/net/prefix.js';

/** A pair that `wg genkey` and `wg pubkey` made for this test. */
const PRIVATE = 'mOvmHfGvaCE4MsEuHg7CIzJ3L8ViVvQq3irGv0TM2kc=';
const PUBLIC = '5lD0W5wOpdb2IxMkafOfVxUZtjVXfU3XvJHO6EPSX38=';

describe('WireGuard keys', () => {
  let directory: string;
  let file: string;

  beforeEach(async () => {
    directory = await mkdtemp(join(tmpdir(), 'pwwg-'));
    file = join(directory, 'state/wgkey');
  });

  afterEach(() => rm(directory, { recursive: true, force: true }));

  test('the public key is the one that wg computes', () => {
    expect(wireguardPublicKey(PRIVATE)).toBe(PUBLIC);
  });

  test('new keys are clamped, and differ', () => {
    const { privateKey, publicKey } = generateWireguardKeys();
    const bytes = Buffer.from(privateKey, 'base64');
    expect([bytes[0]! & 7, bytes[31]! & 0xc0]).toEqual([0, 0x40]);
    expect(isWireguardKey(privateKey) && isWireguardKey(publicKey)).toBe(true);
    expect(generateWireguardKeys().privateKey).not.toBe(privateKey);
  });

  test.each(['', 'x', PRIVATE.slice(1), `${PRIVATE}=`, PRIVATE.replace('c=', 'd='), 7, undefined])(
    'no key: %j',
    (text) => {
      expect(isWireguardKey(text)).toBe(false);
    },
  );

  test('a file is made once, for its owner to read, and kept', async () => {
    const made = await wireguardKeysOf(file);
    expect((await stat(file)).mode & 0o777).toBe(0o400);
    expect((await readFile(file, 'utf8')).trim()).toBe(made.privateKey);
    expect(await wireguardKeysOf(file)).toEqual(made);
  });

  test('a file of two agents that start together is one file', async () => {
    const all = await Promise.all([1, 2, 3].map(() => wireguardKeysOf(file)));
    expect(new Set(all.map(({ publicKey }) => publicKey)).size).toBe(1);
  });

  test('a file without a key is refused, and what it holds is not repeated', async () => {
    file = join(directory, 'wgkey');
    await writeFile(file, 'not-a-key');
    await expect(wireguardKeysOf(file)).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringMatching(/holds no private key/) as string,
    });
    await expect(wireguardKeysOf(file)).rejects.not.toThrow('not-a-key');
  });

  test('the text for wg', () => {
    const peers = [
      {
        publicKey: PUBLIC,
        endpoint: '[fd77::2]:51820',
        allowedIps: [Prefix.parse('10.42.1.0/24'), Prefix.parse('fd42::/64')],
      },
    ];
    const settings = { privateKey: PRIVATE, listenPort: 51_820, presharedKey: PRIVATE, keepaliveSeconds: 25 };
    expect(wireguardConfig(settings, peers)).toBe(
      [
        '[Interface]',
        `PrivateKey = ${PRIVATE}`,
        'ListenPort = 51820',
        '[Peer]',
        `PublicKey = ${PUBLIC}`,
        'Endpoint = [fd77::2]:51820',
        'AllowedIPs = 10.42.1.0/24, fd42::/64',
        `PresharedKey = ${PRIVATE}`,
        'PersistentKeepalive = 25',
        '',
      ].join('\n'),
    );
  });
});
