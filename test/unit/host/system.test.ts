import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { enableForwarding } from '../../../src/host/forwarding.js';
import { checkSystem, checkTun, ensureSwitch } from '../../../src/host/system.js';

let directory: string;
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'podwire-sys-'));
});
afterEach(async () => {
  await rm(directory, { recursive: true });
});

describe('checkSystem', () => {
  const check = async (release: string, capabilities: string, tun = 'tun'): Promise<void> => {
    await writeFile(join(directory, 'status'), `Name:\tnode\nCapEff:\t${capabilities}\n`);
    await writeFile(join(directory, 'tun'), '');
    await checkSystem({ kernelRelease: release, procStatus: join(directory, 'status') });
    await checkTun(join(directory, tun));
  };
  const ALL = '000001ffffffffff';

  test.each(['4.18.0', '4.19.0-27-amd64', '5.4.0', '6.18.44-x', 'unheard-of'])('kernel %s will do', async (release) => {
    await expect(check(release, ALL)).resolves.toBeUndefined();
  });

  test.each(['4.17.9', '3.10.0-1160.el7', '2.6.32'])('kernel %s is too old, and which is not', async (release) => {
    await expect(check(release, ALL)).rejects.toMatchObject({
      code: 'UNSUPPORTED',
      message: expect.stringMatching(/^Linux .* is too old: podwire needs 4\.18 or newer/) as string,
    });
  });

  test.each([
    ['0000000000001000', true],
    ['0000000000000fff', false],
    ['0000000000000000', false],
    ['000001ffffffefff', false],
  ])('effective capabilities %s: allowed %s', async (mask, allowed) => {
    const attempt = check('6.1.0', mask);
    await (allowed
      ? expect(attempt).resolves.toBeUndefined()
      : expect(attempt).rejects.toMatchObject({
          code: 'PERMISSION',
          errno: 'EPERM',
          message: expect.stringContaining('CAP_NET_ADMIN') as string,
        }));
  });

  test('no TUN device says how to get one', async () => {
    await expect(check('6.1.0', ALL, 'none')).rejects.toMatchObject({
      code: 'UNSUPPORTED',
      message: expect.stringMatching(/\/none is missing: load the module \(modprobe tun\)/) as string,
    });
  });

  test('a TUN device that cannot be opened is a permission, with the reason', async () => {
    await mkdir(join(directory, 'isdir'));
    await expect(check('6.1.0', ALL, 'isdir')).rejects.toMatchObject({ code: 'PERMISSION', errno: 'EISDIR' });
  });
});

describe('switches', () => {
  const put = async (path: string, value: string): Promise<string> => {
    const full = join(directory, path);
    await mkdir(dirname(full), { recursive: true });
    await writeFile(full, `${value}\n`);
    return full;
  };
  const get = async (path: string): Promise<string> => (await readFile(join(directory, path), 'utf8')).trim();

  test('ensureSwitch writes only a difference, and reports what it could not', async () => {
    const path = await put('a', '1');
    expect(await ensureSwitch(path, '1')).toBe('already');
    expect(await readFile(path, 'utf8')).toBe('1\n');
    expect(await ensureSwitch(path, '0')).toBe('set');
    expect(await readFile(path, 'utf8')).toBe('0');
    expect(await ensureSwitch(join(directory, 'none'), '0')).toEqual({
      failed: expect.stringContaining('ENOENT') as string,
    });
  });

  test('IPv4 forwarding is set with a word, or silently left when it is on', async () => {
    await put('net/ipv4/ip_forward', '0');
    expect(await enableForwarding([4], 'eth0', directory)).toEqual([
      { ok: true, text: 'net.ipv4.ip_forward was 0: set to 1' },
    ]);
    expect(await get('net/ipv4/ip_forward')).toBe('1');
    expect(await enableForwarding([4], 'eth0', directory)).toEqual([]);
  });

  test('forwarding that cannot be set is told with the command to run', async () => {
    const [note] = await enableForwarding([4], 'eth0', directory);
    expect(note).toMatchObject({
      ok: false,
      text: expect.stringContaining('run sysctl -w net.ipv4.ip_forward=1') as string,
    });
  });

  test('IPv6 forwarding keeps router advertisements on the underlay, which would otherwise end', async () => {
    await put('net/ipv4/ip_forward', '1');
    await put('net/ipv6/conf/all/forwarding', '0');
    await put('net/ipv6/conf/eth0/accept_ra', '1');
    expect((await enableForwarding([4, 6], 'eth0', directory)).map(({ text }) => text)).toEqual([
      'net.ipv6.conf.eth0.accept_ra was 1: set to 2',
      'net.ipv6.conf.all.forwarding was 0: set to 1',
    ]);
  });

  test('IPv6: an operator who forwards already, or wants no advertisements, is left alone', async () => {
    await put('net/ipv6/conf/all/forwarding', '1');
    await put('net/ipv6/conf/eth0/accept_ra', '1');
    expect(await enableForwarding([6], 'eth0', directory)).toEqual([]);
    await put('net/ipv6/conf/all/forwarding', '0');
    await put('net/ipv6/conf/eth0/accept_ra', '0');
    await enableForwarding([6], 'eth0', directory);
    expect(await get('net/ipv6/conf/eth0/accept_ra')).toBe('0');
  });
});
