/**
 * `podwire leases` beside a real flanneld: it takes the subnet that is reserved for it, and lives with reservations of
 * hosts that are not there.
 */
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { counterpart } from '../support/counterparts.js';
import { NetNs, veth } from '../support/netns.js';
import { cli, type Finished, type Process, until } from '../support/process.js';
import { missing } from '../support/requires.js';

const needs = {
  root: true,
  commands: ['ip'],
  files: ['dist/bundle/main.cjs'],
  counterparts: ['etcd-3.6', 'flanneld'],
} as const;

const HOST = '192.0.2.1';
const ETCD = 'http://127.0.0.1:2379';

interface Listed {
  readonly leases: readonly { readonly key: string; readonly publicIp: string; readonly reserved: boolean }[];
}

describe.skipIf(missing(needs))('podwire leases and flanneld', () => {
  let directory: string;
  let ns: NetNs;
  let lan: NetNs;
  let etcd: Process;
  beforeAll(async () => {
    directory = mkdtempSync(join(tmpdir(), 'pwsee-'));
    ns = await NetNs.create('see', 'host');
    lan = await NetNs.create('see', 'lan');
    await veth({ ns, name: 'eth0', address: `${HOST}/24` }, { ns: lan, name: 'eth0', address: '192.0.2.254/24' });
    const options = ['--data-dir', join(directory, 'etcd'), '--log-level', 'error', '--listen-client-urls', ETCD];
    options.push('--advertise-client-urls', ETCD, '--listen-peer-urls', 'http://127.0.0.1:2380');
    etcd = ns.spawn(counterpart('etcd-3.6'), options);
    await until(async () => (await leases('list')).code === 0, { what: 'etcd', timeoutMs: 30_000 });
  });
  afterAll(async () => {
    await etcd[Symbol.asyncDispose]();
    await ns[Symbol.asyncDispose]();
    await lan[Symbol.asyncDispose]();
    rmSync(directory, { recursive: true, force: true });
  });

  const leases = (...args: readonly string[]): Promise<Finished> =>
    ns.run(process.execPath, [cli, 'leases', ...args, `--etcd-endpoints=${ETCD}`]);
  const ok = async (...args: readonly string[]): Promise<string> => {
    const { code, stdout, stderr } = await leases(...args);
    expect([code, stderr]).toEqual([0, '']);
    return stdout;
  };
  const listed = async (): Promise<Listed['leases']> => (JSON.parse(await ok('list', '--json')) as Listed).leases;

  it('a reservation is taken, others are tolerated, and a release by force is what it says', async () => {
    await ok('config', 'set', '{"Network":"10.88.0.0/16","Backend":{"Type":"vxlan"}}');
    await ok('reserve', '10.88.55.0/24', `--public-ip=${HOST}`);
    await ok('reserve', '10.88.66.0/24', '--public-ip=192.0.2.99');
    const subnetFile = join(directory, 'subnet.env');
    await using flanneld = ns.spawn(counterpart('flanneld'), [
      `-etcd-endpoints=${ETCD}`,
      '-iface=eth0',
      `-subnet-file=${subnetFile}`,
      '-iptables-forward-rules=false',
    ]);
    const written = await until(() => existsSync(subnetFile) && readFileSync(subnetFile, 'utf8'), {
      what: "flanneld's subnet file",
      timeoutMs: 30_000,
    });
    expect(written).toContain('FLANNEL_SUBNET=10.88.55.1/24\n');
    // flanneld makes an ordinary lease of its reservation; that of the host which is not there stays one.
    expect((await listed()).map(({ key, publicIp, reserved }) => [key, publicIp, reserved])).toEqual([
      ['10.88.55.0-24', HOST, false],
      ['10.88.66.0-24', '192.0.2.99', true],
    ]);
    await flanneld.output(/ignoring non-vxlan v4Subnet\(10\.88\.66\.0/, { from: 'stderr' });

    const refused = await leases('release', '10.88.55.0/24');
    expect([refused.code, refused.stdout]).toEqual([1, '']);
    expect(refused.stderr).toMatch(/^podwire: 10\.88\.55\.0-24 is held by 192\.0\.2\.1 for another 23h .*--force/);

    // Reservations come and go while it runs.
    await ok('reserve', '10.88.77.0/24', '--public-ip=192.0.2.77');
    await flanneld.output(/ignoring non-vxlan v4Subnet\(10\.88\.77\.0/, { from: 'stderr' });
    await ok('release', '10.88.77.0/24');
    expect((await listed()).map(({ key }) => key)).toEqual(['10.88.55.0-24', '10.88.66.0-24']);
    expect(flanneld.running, flanneld.stderr).toBe(true);

    await ok('release', '10.88.55.0/24', '--force');
    expect((await flanneld.finished).code).toBe(0);
    expect(flanneld.stderr).toMatch(/revoked|Exiting cleanly/);
    expect(flanneld.stderr).not.toMatch(/panic/);
  });
});
