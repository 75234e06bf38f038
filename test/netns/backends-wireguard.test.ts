import { stat, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { backendContract } from '../contract/backends/contract.js';
import { ready } from '../support/agents.js';
import { attributes, BackendBed, type BackendHost } from '../support/backend-bed.js';
import { type Process, run, until } from '../support/process.js';
import { missing } from '../support/requires.js';

const KEY: unknown = expect.stringMatching(/^[A-Za-z0-9+/]{43}=$/);
const PSK = 'AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=';
const NEEDS = {
  root: true,
  tun: true,
  commands: ['ip', 'ping', 'wg', 'tcpdump'],
  counterparts: ['wireguard-go'] as const,
};

/** The devices are wireguard-go's: no kernel here has to have WireGuard. */
describe.skipIf(missing({ ...NEEDS, files: ['dist/bundle/main.cjs'] }))('wireguard', () => {
  backendContract({
    name: 'wireguard, dual stack, a device for each family',
    backend: { Type: 'wireguard' },
    stack: 'dual',
    mtu: 1420,
    lease: {
      BackendType: 'wireguard',
      BackendData: { PublicKey: KEY, Port: 51_820 },
      BackendV6Data: { PublicKey: KEY, Port: 51_821 },
    },
  });
  backendContract({
    name: 'wireguard, dual stack, one device over IPv6',
    backend: { Type: 'wireguard', Mode: 'ipv6', PSK },
    stack: 'dual',
    mtu: 1420,
    lease: {
      BackendType: 'wireguard',
      BackendData: { PublicKey: KEY, Port: 51_820 },
      BackendV6Data: { PublicKey: KEY, Port: 51_820 },
    },
  });

  describe('two hosts', () => {
    let bed: BackendBed;
    let agents: Process[];
    const config = (more: object = {}): object => ({
      Network: '10.42.0.0/16',
      Backend: { Type: 'wireguard', PSK, PersistentKeepaliveInterval: 25, ...more },
    });
    const wg = (host: BackendHost, ...args: readonly string[]): Promise<string> => {
      const script = `mount --bind ${join(host.home, 'wireguard')} /var/run/wireguard && exec wg "$@"`;
      return host.ns.ok('sh', ['-c', script, 'sh', ...args]);
    };

    beforeAll(async () => {
      bed = await BackendBed.create(config());
      agents = await bed.startBoth();
      await bed.connected();
    });

    afterAll(() => bed[Symbol.asyncDispose]());

    test('keys: in a file that only root reads, never in the log or the status', async () => {
      const [key = ''] = await bed.state(bed.a, 'wgkey');
      expect((await stat(key)).mode & 0o777).toBe(0o400);
      const secret = (await readFile(key, 'utf8')).trim();
      const status = JSON.stringify(await bed.status(bed.a));
      for (const text of [agents[0]!.stderr, status]) {
        expect(text).not.toContain(secret);
        expect(text).not.toContain(PSK);
      }
      expect(await wg(bed.a, 'show', 'flannel-wg', 'private-key')).toContain(secret);
    });

    test('a peer has the endpoint, the allowed subnet, the preshared key and the keepalive', async () => {
      const subnet = (await bed.subnet(bed.b))['SUBNET']!.replace('.1/24', '.0/24');
      const [, peer = ''] = (await wg(bed.a, 'show', 'flannel-wg', 'dump')).trim().split('\n');
      const [, presharedKey, endpoint, allowedIps, handshake, , , keepalive] = peer.split('\t');
      expect({ presharedKey, endpoint, allowedIps, keepalive }).toEqual({
        presharedKey: PSK,
        endpoint: `${bed.b.underlay}:51820`,
        allowedIps: subnet,
        keepalive: '25',
      });
      expect(Number(handshake)).toBeGreaterThan(0);
    });

    test('nothing of a packet can be read on the underlay', async () => {
      await using seen = bed.b.ns.spawn('tcpdump', ['-l', '-x', '-n', '-i', 'eth0', 'udp']);
      await seen.output(/listening on/, { from: 'stderr' });
      const target = (await bed.subnet(bed.b))['SUBNET']!.replace(/\/.*/, '');
      await bed.a.ns.ok('ping', ['-n', '-c', '2', '-i', '0.1', '-p', 'c0ffee', target]);
      await seen.output(/10\.77\.0\.1\.51820 > 10\.77\.0\.2\.51820: UDP/);
      expect(seen.stdout.replaceAll(' ', '')).not.toContain('c0ffeec0ffee');
    });

    test('a wireguard-go that ends is started again with keys and peers', async () => {
      const pids = (await bed.a.ns.ok('ip', ['netns', 'pids', bed.a.ns.name])).trim().split('\n');
      for (const pid of pids) {
        const name = await readFile(`/proc/${pid}/comm`, 'utf8').catch(() => '');
        if (name.startsWith('wireguard-go')) process.kill(Number(pid), 'SIGKILL');
      }
      await agents[0]!.output(/wireguard-go for flannel-wg runs again/, { from: 'stderr' });
      await bed.connected();
    });

    test.each([
      ['no BackendData', undefined, 'it has no BackendData, so its public key is not known'],
      ['no key', { PublicKey: 'x', Port: 1 }, 'its PublicKey is the string "x", which is no key'],
      ['a port that is none', { PublicKey: PSK, Port: 70_000 }, 'its Port is the number 70000, which is no UDP port'],
    ])('a lease with %s is ignored with one clear line', async (_what, backendData, reason) => {
      const key = '10.42.200.0-24';
      await bed.putLease(key, attributes('10.77.0.200', 'wireguard', backendData === undefined ? {} : { backendData }));
      const seen = await until(
        async () => (await bed.status(bed.a)).leases.find(({ subnet }) => subnet === '10.42.200.0/24'),
        { what: 'the lease to be shown' },
      );
      expect(seen).toMatchObject({ state: 'ignored', reason });
      await bed.removeLease(key);
    });

    test.each([
      [{ Mode: 'both' }, 'Backend.Mode is the string "both"; no valid Mode configured, give one of'],
      [{ PSK: 'secret' }, 'Backend.PSK is no key; give 44 characters of base64 as wg genpsk prints them'],
      [{ ListenPort: 0 }, 'Backend.ListenPort is the number 0; give a whole number from 1 to 65535'],
    ])('a config with %j ends the start with one line', async (more, line) => {
      await agents[0]!.stop('SIGTERM');
      await bed.configure(config(more));
      const ended = await bed.start(bed.a).finished;
      expect(ended.code).toBe(1);
      expect(ended.stderr).toContain(JSON.stringify(line).slice(1, -1));
      expect(ended.stderr).not.toContain('"secret"');
      await bed.configure(config());
      agents[0] = bed.start(bed.a);
      await ready(agents[0]);
    });

    test('a clean stop leaves no device and no wireguard-go', async () => {
      expect((await agents[0]!.stop('SIGTERM')).code).toBe(0);
      expect((await bed.a.ns.run('ip', ['link', 'show', 'flannel-wg'])).code).not.toBe(0);
      expect((await run('ip', ['netns', 'pids', bed.a.ns.name])).stdout.trim()).toBe('');
    });
  });
});
