import { readdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { AGENT_NEEDS, AgentBed, type AgentHost, errorsOf, links, routes } from '../support/agents.js';
import { cli } from '../support/process.js';
import { missing } from '../support/requires.js';

const NEEDS = { ...AGENT_NEEDS, commands: ['ip', 'setpriv', 'unshare', 'mount'] };

describe.skipIf(missing(NEEDS))('an agent that cannot start: one line, exit 1, and nothing is left', () => {
  let bed: AgentBed;
  let a: AgentHost;
  let b: AgentHost;

  beforeAll(async () => {
    bed = await AgentBed.create();
    ({ a, b } = bed);
  });

  afterAll(() => bed[Symbol.asyncDispose]());

  beforeEach(() => bed.reset());

  afterEach(() => bed.killAll());

  interface Failure {
    readonly name: string;
    readonly prepare?: () => Promise<unknown>;
    readonly args?: readonly string[];
    readonly message: RegExp;
    readonly restore?: () => Promise<unknown>;
    /** Run the agent through this program. */
    readonly wrapper?: readonly string[];
  }
  const config = (text: string) => (): Promise<void> => writeFile(join(bed.store, 'config'), text);
  const failures: readonly Failure[] = [
    {
      name: 'no network config',
      prepare: () => rm(join(bed.store, 'config')),
      message: /^no network config at .*\/config; create it with/,
    },
    {
      name: 'config that is no JSON',
      prepare: config('{"Network"'),
      message: /^invalid network config: not valid JSON/,
    },
    { name: 'config without a network', prepare: config('{}'), message: /please define a correct Network parameter/ },
    {
      name: 'a backend of flannel’s that is not here',
      prepare: config('{"Network":"10.42.0.0/16","Backend":{"Type":"tencent-vpc"}}'),
      message: /asks for the backend "tencent-vpc", which podwire does not have: use /,
    },
    {
      name: 'a bad port',
      prepare: config('{"Network":"10.42.0.0/16","Backend":{"Type":"udp","Port":70000}}'),
      message: /Backend\.Port is 70000/,
    },
    {
      name: 'IPv6 only',
      prepare: config('{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:42::/48"}'),
      message: /IPv6|IPv4/,
    },
    {
      name: 'the underlay inside the pod network',
      prepare: config('{"Network":"10.64.0.0/10"}'),
      message: /10\.77\.0\.1 of eth0 lies inside the pod network 10\.64\.0\.0\/10/,
    },
    { name: 'no such interface', args: ['--iface=eth7'], message: /^(Failed to find interface).*eth7/ },
    {
      name: 'a public address nobody owns',
      args: ['--public-ip=10.77.0.77'],
      message: /^no interface owns --public-ip 10\.77\.0\.77/,
    },
    {
      name: 'a route that collides',
      prepare: () => a.ns.ip('route', 'add', '10.42.0.0/16', 'via', b.underlay),
      restore: () => a.ns.ip('route', 'del', '10.42.0.0/16'),
      message: /route 10\.42\.0\.0\/16 via 10\.77\.0\.2 dev eth0 already takes the pod network: remove it/,
    },
    {
      name: 'no CAP_NET_ADMIN',
      wrapper: ['setpriv', '--inh-caps=-net_admin', '--bounding-set=-net_admin'],
      message: /CAP_NET_ADMIN/,
    },
    {
      name: 'no /dev/net/tun',
      wrapper: ['unshare', '--mount', 'sh', '-c', 'mount -t tmpfs none /dev/net && exec "$@"', 'sh'],
      message: /^\/dev\/net\/tun is missing: load the module/,
    },
  ];

  test.each(failures)('$name', async (failure) => {
    await failure.prepare?.();
    try {
      const before = { links: await links(a), routes: await routes(a), leases: await bed.leases() };
      const args = [
        ...(failure.wrapper ?? []),
        process.execPath,
        cli,
        'agent',
        `--store=dir:${bed.store}`,
        ...(failure.args ?? ['--iface=eth0']),
        `--subnet-file=${a.subnetFile}`,
        '--log-format=json',
      ];
      const finished = await a.ns.run(args[0] ?? '', args.slice(1));
      expect(finished.code).toBe(1);
      expect(errorsOf(finished)).toEqual([expect.stringMatching(failure.message)]);
      expect(finished.stdout).toBe('');
      expect({ links: await links(a), routes: await routes(a), leases: await bed.leases() }).toEqual(before);
      expect(await readdir(a.run)).toEqual([]);
    } finally {
      await failure.restore?.();
    }
  });

  test('out of subnets', async () => {
    await writeFile(
      join(bed.store, 'config'),
      '{"Network":"10.42.0.0/24","SubnetLen":26,"SubnetMin":"10.42.0.64","SubnetMax":"10.42.0.64"}',
    );
    await bed.startReady(b);
    const finished = await bed.start(a).finished;
    expect(finished.code).toBe(1);
    expect(errorsOf(finished)).toEqual([expect.stringMatching(/out of subnets/)]);
    expect(await links(a)).toEqual(['eth0', 'lo']);
    expect(await readdir(a.run)).toEqual([]);
  });
});
