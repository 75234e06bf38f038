/**
 * What every backend does, on two real hosts in namespaces. A new backend is one row of {@link BackendRow}.
 */
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { PeerProbe } from '../../../src/dataplane/probes.js';
import { ready } from '../../support/agents.js';
import { attributes, BackendBed, type BackendHost } from '../../support/backend-bed.js';
import { type Process, until } from '../../support/process.js';

export interface BackendRow {
  readonly name: string;
  /** The `Backend` object of the network config. */
  readonly backend: Readonly<Record<string, unknown>>;
  readonly stack?: 'ipv4' | 'dual' | 'ipv6';
  /** Family of the underlay addresses where the pods' do not tell. */
  readonly outer?: 'ipv6';
  /** FLANNEL_MTU over an underlay of 1500 bytes. */
  readonly mtu: number;
  /** What the lease says besides PublicIP and PublicIPv6. */
  readonly lease: Readonly<Record<string, unknown>>;
  /** The kernel carries the packets: they pass while the agent is not there. */
  readonly survives?: boolean;
  /** Hosts are not connected by this backend. */
  readonly isolated?: boolean;
  /** Routes to another host's subnet, in the main table. */
  readonly routes?: (host: BackendHost, prefix: string) => Promise<string>;
  readonly flags?: readonly string[];
}

const NETWORKS = {
  ipv4: { Network: '10.42.0.0/16' },
  dual: { Network: '10.42.0.0/16', EnableIPv6: true, IPv6Network: 'fd42::/48' },
  ipv6: { EnableIPv4: false, EnableIPv6: true, IPv6Network: 'fd42::/48' },
} as const;

export function backendContract(row: BackendRow): void {
  const stack = row.stack ?? 'ipv4';
  const families = stack === 'dual' ? ['SUBNET', 'IPV6_SUBNET'] : [stack === 'ipv6' ? 'IPV6_SUBNET' : 'SUBNET'];

  describe(row.name, () => {
    let bed: BackendBed;
    let agents: Process[];

    beforeAll(async () => {
      bed = await BackendBed.create({ ...NETWORKS[stack], Backend: row.backend });
      agents = await bed.startBoth(...(row.flags ?? []));
    });

    afterAll(() => bed[Symbol.asyncDispose]());

    test('subnet.env, lease and status say what they should', async () => {
      const file = await bed.subnet(bed.a);
      expect(Number(file['MTU'])).toBe(row.mtu);
      for (const name of families) expect(file[name]).toMatch(/1\/(24|64)$/);
      const marks = [`"PublicIP":"${bed.a.underlay}"`, `"PublicIPv6":"${bed.a.underlay6}"`];
      const own = Object.values(await bed.leases()).find((text) => marks.some((mark) => text.includes(mark)));
      const value = JSON.parse(own ?? '{}') as Record<string, unknown>;
      expect(value).toEqual({
        PublicIP: address4(),
        PublicIPv6: stack === 'ipv4' && row.outer === undefined ? null : bed.a.underlay6,
        ...row.lease,
      });
      expect((await bed.status(bed.a)).backend).toBe(row.backend['Type']);
      function address4(): string {
        return stack === 'ipv6' || row.outer === 'ipv6' ? '0.0.0.0' : bed.a.underlay;
      }
    });

    test.skipIf(row.isolated)('full-size packets pass both ways, in every family', () => bed.connected());

    test.skipIf(row.isolated)('peers answer probes', async () => {
      const probe = async (): Promise<PeerProbe | undefined> => {
        const { leases, dataplane } = await bed.status(bed.a);
        return leases[0]?.probe ?? dataplane?.peers[0]?.probe;
      };
      const seen = await until(async () => ((await probe())?.state === 'ok' ? probe() : undefined), {
        what: 'an answer to a probe',
      });
      expect(seen.rttUs).toBeGreaterThan(1);
    });

    test('a lease of another backend is shown and has no route', async () => {
      if (stack !== 'ipv4') return;
      const type = row.backend['Type'] === 'host-gw' ? 'vxlan' : 'host-gw';
      await bed.putLease('10.42.250.0-24', attributes('10.77.0.250', type));
      const seen = await until(
        async () => (await bed.status(bed.a)).leases.find(({ subnet }) => subnet.startsWith('10.42.250.0')),
        { what: 'the lease to be shown' },
      );
      expect(seen.state).toBe('ignored');
      expect(await bed.a.ns.ip('route', 'show', '10.42.250.0/24')).toBe('');
      await bed.removeLease('10.42.250.0-24');
    });

    test.runIf(row.survives)(
      'no packet is lost while the agent is killed and started again, its lease is the same',
      async () => {
        await bed.connected();
        const before = await bed.leases();
        const theirs = (await bed.subnet(bed.b))[families[0]!]!.replace(/\/.*/, '');
        const mine = (await bed.subnet(bed.a))[families[0]!]!.replace(/\/.*/, '');
        const pings = bed.a.ns.spawn('ping', ['-n', '-i', '0.01', '-I', mine, theirs]);
        await pings.output(/icmp_seq=20 /);
        await agents[0]!.stop('SIGKILL');
        await pings.output(/icmp_seq=60 /);
        agents[0] = bed.start(bed.a, ...(row.flags ?? []));
        await ready(agents[0]);
        const last = Number([...pings.stdout.matchAll(/icmp_seq=(\d+)/g)].at(-1)![1]);
        await pings.output(new RegExp(`icmp_seq=${last + 20} `));
        const { stdout } = await pings.stop('SIGINT');
        expect(stdout).toMatch(/ 0% packet loss/);
        expect(await bed.leases()).toEqual(before);
      },
    );

    test.skipIf(row.isolated)('a host that goes, goes from the routes; one that returns is reached again', async () => {
      const [key, value] = Object.entries(await bed.leases()).find(
        ([, text]) => text.includes(bed.b.underlay) || text.includes(`"${bed.b.underlay6}"`),
      )!;
      await agents[1]!.stop('SIGKILL');
      await bed.removeLease(key);
      await until(async () => (await bed.status(bed.a)).leases.length === 0, { what: 'the lease to go' });
      agents[1] = bed.start(bed.b, ...(row.flags ?? []));
      await ready(agents[1]);
      await bed.connected();
      expect((await bed.leases())[key]).toBe(value);
    });

    test('an agent on a host that lost everything but its identity tells its peers the same', async () => {
      const before = await bed.leases();
      await agents[0]!.stop('SIGKILL');
      for (const device of ['flannel.1', 'flannel-v6.1', 'flannel.ipip'])
        await bed.a.ns.run('ip', ['link', 'del', device]);
      if (row.backend['Type'] !== 'wireguard') await rm(join(bed.a.home, 'state'), { recursive: true, force: true });
      await rm(bed.a.subnetFile, { force: true });
      agents[0] = bed.start(bed.a, ...(row.flags ?? []));
      await ready(agents[0]);
      expect(await bed.leases()).toEqual(before);
      if (row.isolated !== true) await bed.connected();
    });
  });
}
