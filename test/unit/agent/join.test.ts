import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { joinOverlayWith, type OverlayOptions, type OverlaySeams } from '../../../src/control/join.js';
import type { Overlay } from '../../../src/control/overlay.js';
import { MemoryStoreServer } from '../../../src/control/stores/memory.js';
import type { Logger } from '../../../src/dataplane/logger.js';
import { PodwireError } from '../../../src/errors.js';
import { until } from '../../support/process.js';
import { QuietGuard, QuietMonitor } from '../../support/quiet-host.js';
import { commandFailed, fakeIp, link } from '../host/fake-ip.js';
import { FakeDataplane } from './fake-dataplane.js';

const CONFIG = '{"Network":"10.42.0.0/16","Backend":{"Type":"udp","Port":9000}}';

let directory: string;
let subnetFile: string;
let server: MemoryStoreServer;
let dataplane: FakeDataplane;
let log: { level: string; message: string }[];
const opened: Overlay[] = [];

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'podwire-join-'));
  subnetFile = join(directory, 'subnet.env');
  server = new MemoryStoreServer({ config: CONFIG });
  dataplane = new FakeDataplane();
  log = [];
});

afterEach(async () => {
  for (const overlay of opened.splice(0)) await overlay.close();
  await rm(directory, { recursive: true });
});

const logger: Logger = Object.fromEntries(
  ['debug', 'info', 'warn', 'error'].map((level) => [
    level,
    (_: object, message: string) => void log.push({ level, message }),
  ]),
) as unknown as Logger;

const messages = (level: string): string[] => log.filter((line) => line.level === level).map((line) => line.message);

const HOST = {
  '-j -d address show': [
    link('lo', 1, []),
    link('eth0', 2, ['192.168.1.5']),
    link('docker0', 3, ['172.17.0.1', 'fe80::9']),
  ],
  '-j -4 route show default': [{ dst: 'default', dev: 'eth0' }],
  '-j link show type tun': [],
  '-j -N -4 route show table main': [],
  'address del': '',
};

interface Attempt {
  readonly options?: Partial<OverlayOptions>;
  readonly seams?: Partial<OverlaySeams>;
  readonly host?: Readonly<Record<string, unknown>>;
}

async function attempt({ options = {}, seams = {}, host = {} }: Attempt = {}): Promise<{
  overlay: Overlay;
  calls: string[];
}> {
  const ip = fakeIp({ ...host, ...Object.fromEntries(Object.entries(HOST).filter(([key]) => !(key in host))) });
  const overlay = await joinOverlayWith(
    { store: server.open({ name: 'us' }), subnetFile, owner: 'us', logger, ...options },
    {
      runner: ip.runner,
      openDataplane: dataplane.open,
      checkSystem: async () => undefined,
      monitor: new QuietMonitor(),
      guard: new QuietGuard(),
      enableForwarding: async () => void dataplane.events.push('forwarding'),
      ...seams,
    },
  );
  opened.push(overlay);
  return { overlay, calls: ip.calls };
}

const stored = (): string[] => [...server.entries().keys()].sort();
const peer = (publicIp: string, more: object = {}): string =>
  JSON.stringify({
    PublicIP: publicIp,
    PublicIPv6: null,
    ...more,
    Expiration: new Date(Date.now() + 3_600_000).toISOString(),
  });

describe('a start', () => {
  test('asks the data plane for the right thing, before there is a lease', async () => {
    const { overlay } = await attempt({ options: { dataplane: { workers: 3, sourceCheck: 'strict' } } });
    expect(dataplane.options).toMatchObject({ workers: 3, sourceCheck: 'strict', local: [], underlayMtu: 1500 });
    expect(String(dataplane.options?.bind.address)).toBe('192.168.1.5');
    expect(dataplane.options?.bind.port).toBe(9000);
    expect(dataplane.ownAddresses.map(String)).toEqual(['192.168.1.5', '172.17.0.1']);
    expect(dataplane.events).toEqual(['open', `local ${overlay.lease.subnet.toString()}`, 'forwarding']);
    expect(stored()).toHaveLength(1);
    const base = overlay.lease.subnet.address.toString();
    expect(await readFile(subnetFile, 'utf8')).toBe(
      `FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=${base.replace(/0$/, '1')}/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n`,
    );
  });

  test('takes the subnet of the subnet file, however it got there', async () => {
    await writeFile(subnetFile, 'FLANNEL_SUBNET=10.42.77.1/24\n');
    const { overlay } = await attempt();
    expect(overlay.lease.subnet.toString()).toBe('10.42.77.0/24');
  });

  test('without a subnet file touches no file', async () => {
    const { overlay } = await attempt({ options: { subnetFile: false } });
    expect(await readdir(directory)).toEqual([]);
    expect(overlay.status().subnetFile).toBeUndefined();
  });

  test('says aloud that a config without Backend means udp', async () => {
    server.config = '{"Network":"10.42.0.0/16"}';
    await attempt();
    expect(messages('warn')).toEqual([expect.stringMatching(/names no Backend: using udp/)]);
    expect(dataplane.options?.bind.port).toBe(8285);
  });

  test('hosts are also believed from the other addresses that they are said to send from', async () => {
    const { overlay } = await attempt({ options: { peerSources: { '192.168.1.66': ['192.168.9.6', '192.168.9.7'] } } });
    server.put('10.42.66.0-24', peer('192.168.1.66'));
    server.put('10.42.67.0-24', peer('192.168.1.67'));
    await until(() => dataplane.table.size === 2, { what: 'the routes' });
    expect(dataplane.table.get('10.42.66.0/24')).toBe('192.168.1.66:9000 from 192.168.9.6 192.168.9.7');
    expect(dataplane.table.get('10.42.67.0/24')).toBe('192.168.1.67:9000');
    await overlay.close();
  });

  test.each([
    [{ '192.168.1.66': ['fd00::6'] }, /fd00::6 cannot be a source of 192\.168\.1\.66/],
    [{ host: ['192.168.9.6'] }, /host/],
  ])('sources %j of a peer are refused', async (peerSources, message) => {
    await expect(attempt({ options: { peerSources } })).rejects.toMatchObject({
      code: 'INVALID_ADDRESS',
      message: expect.stringMatching(message) as string,
    });
    expect(dataplane.events).toEqual([]);
  });

  test('waits for a store that is away, telling it once, and goes on when it is back', async () => {
    let away = true;
    server = new MemoryStoreServer({ config: CONFIG, fault: () => (away ? 'fail' : 'none') });
    const joining = attempt();
    await until(() => messages('warn').length > 0, { what: 'the wait to be told' });
    away = false;
    await joining;
    expect(messages('warn')).toEqual([expect.stringMatching(/^waiting for the store: /)]);
  });
});

describe('a start that fails leaves nothing', () => {
  interface Failure extends Attempt {
    readonly name: string;
    readonly config?: string;
    readonly code: string;
    /** The steps of the data plane that were reached. */
    readonly events: readonly RegExp[];
  }
  const failures: readonly Failure[] = [
    {
      name: 'the host',
      seams: { checkSystem: () => Promise.reject(new PodwireError('PERMISSION', 'no')) },
      code: 'PERMISSION',
      events: [],
    },
    { name: 'the config', config: '{"Network":"x"}', code: 'INVALID_CONFIG', events: [] },
    {
      name: 'the backend',
      config: '{"Network":"10.42.0.0/16","Backend":{"Type":"ipsec"}}',
      code: 'UNSUPPORTED',
      events: [],
    },
    { name: 'the interface', options: { interface: { iface: ['eth9'] } }, code: 'INTERFACE', events: [] },
    { name: 'the subnet file', options: { subnetFile: '/dev/null/subnet.env' }, code: 'SYSTEM', events: [] },
    {
      name: 'a colliding route',
      host: { '-j -N -4 route show table main': [{ dst: '10.42.0.0/16', dev: 'eth0' }] },
      code: 'INTERFACE',
      events: [/open/, /close/],
    },
    { name: 'a loop', config: '{"Network":"192.168.0.0/16"}', code: 'INTERFACE', events: [] },
    {
      name: 'the data plane',
      seams: { openDataplane: () => Promise.reject(new PodwireError('PORT_IN_USE', 'no')) },
      code: 'PORT_IN_USE',
      events: [],
    },
    {
      name: 'no free subnet',
      config: '{"Network":"10.42.0.0/24","SubnetLen":26,"SubnetMin":"10.42.0.64","SubnetMax":"10.42.0.64"}',
      code: 'OUT_OF_SUBNETS',
      events: [/open/, /close/],
    },
    {
      name: 'a command of the set-up',
      host: { '-batch -': commandFailed('ip link set: no') },
      code: 'COMMAND_FAILED',
      events: [/open/, /local/, /close/],
    },
  ];

  test.each(failures)('$name', async ({ config, code, events, name, ...rest }) => {
    if (config !== undefined) server.config = config;
    if (name === 'no free subnet') server.put('10.42.0.64-26', peer('192.168.1.66'));
    const before = stored();
    await expect(attempt(rest)).rejects.toMatchObject({ code });
    expect(dataplane.events).toEqual(events.map((event) => expect.stringMatching(event) as string));
    expect(stored()).toEqual(before);
    expect(await readdir(directory)).toEqual([]);
  });

  test('a lease that this host had before is kept, its pods live in it', async () => {
    await writeFile(subnetFile, 'FLANNEL_SUBNET=10.42.77.1/24\n');
    await expect(attempt({ host: { '-batch -': commandFailed('no') } })).rejects.toMatchObject({
      code: 'COMMAND_FAILED',
    });
    expect(stored()).toEqual(['10.42.77.0-24']);
  });

  test('called off while it waits: ABORTED', async () => {
    server = new MemoryStoreServer({
      config: CONFIG,
      fault: (operation) => (operation === 'network' ? 'none' : 'fail'),
    });
    const stop = new AbortController();
    const joining = attempt({ options: { signal: stop.signal } });
    await until(() => messages('warn').some((line) => line.startsWith('waiting for a lease')), { what: 'the wait' });
    stop.abort();
    await expect(joining).rejects.toMatchObject({ code: 'ABORTED' });
    expect(dataplane.events).toEqual(['open', 'close']);
  });
});

describe('called off while the store is giving us a lease', () => {
  /** Aborts when the lease is being written; the write itself cannot be called back. */
  const callOff = async (): Promise<void> => {
    const stop = new AbortController();
    server = new MemoryStoreServer({
      config: CONFIG,
      fault: (operation) => {
        if (operation === 'write') stop.abort();
        return 'none';
      },
    });
    await expect(attempt({ options: { signal: stop.signal } })).rejects.toMatchObject({ code: 'ABORTED' });
    expect(dataplane.events).toEqual(['open', 'close']);
  };

  test('a new one is given back', async () => {
    await callOff();
    expect(stored()).toEqual([]);
  });

  test('the one we had before is kept', async () => {
    await writeFile(subnetFile, 'FLANNEL_SUBNET=10.42.77.1/24\n');
    await callOff();
    expect(stored()).toEqual(['10.42.77.0-24']);
  });
});

describe('routes follow the leases', () => {
  test('there before, joining, changing, leaving; to PublicIP and our own port', async () => {
    server.put('10.42.200.0-24', peer('192.168.1.20'));
    const { overlay } = await attempt();
    const table = () => Object.fromEntries(dataplane.table);
    await until(() => dataplane.table.size === 1, { what: 'the first route' });
    expect(table()).toEqual({ '10.42.200.0/24': '192.168.1.20:9000' });
    server.put('10.42.201.0-24', peer('192.168.1.21'));
    await until(() => dataplane.table.size === 2, { what: 'the second route' });
    server.put('10.42.200.0-24', peer('192.168.1.22'));
    await until(() => table()['10.42.200.0/24'] === '192.168.1.22:9000', { what: 'the changed route' });
    server.delete('10.42.200.0-24');
    await until(() => dataplane.table.size === 1, { what: 'the route to go' });
    expect(overlay.status().leases.map(({ lease, state }) => `${lease.subnet.toString()} ${state}`)).toEqual([
      '10.42.201.0/24 routed',
    ]);
  });

  test('refused, ignored and failed leases have no route, and a reason', async () => {
    dataplane.refuse.add('10.42.203.0/24');
    server.put('10.42.201.0-24', peer('10.42.9.9'));
    server.put('10.42.202.0-24', peer('192.168.1.22', { BackendType: 'vxlan' }));
    server.put('10.42.203.0-24', peer('192.168.1.23'));
    server.put('10.42.204.0-24', peer('172.17.0.1'));
    server.put('10.42.205.0-24', peer('192.168.1.25'));
    const { overlay } = await attempt();
    await until(() => dataplane.table.size === 1, { what: 'the good route' });
    const seen = overlay
      .status()
      .leases.map(({ lease, state, reason }) => [lease.subnet.toString(), state, reason ?? '']);
    expect(seen).toEqual([
      ['10.42.201.0/24', 'refused', expect.stringMatching(/10\.42\.9\.9 lies inside/)],
      ['10.42.202.0/24', 'ignored', 'its backend is vxlan, ours is udp'],
      ['10.42.203.0/24', 'failed', 'the table is full'],
      ['10.42.204.0/24', 'refused', expect.stringMatching(/our own/)],
      ['10.42.205.0/24', 'routed', ''],
    ]);
  });

  test('a peer that turns to another backend loses its route', async () => {
    server.put('10.42.201.0-24', peer('192.168.1.21'));
    const { overlay } = await attempt();
    await until(() => dataplane.table.size === 1, { what: 'the route' });
    server.put('10.42.201.0-24', peer('192.168.1.21', { BackendType: 'vxlan' }));
    await until(() => dataplane.table.size === 0, { what: 'the route to go' });
    server.put('10.42.201.0-24', peer('192.168.1.21'));
    await until(() => overlay.status().leases[0]?.state === 'routed', { what: 'the route to be back' });
    expect(dataplane.table.size).toBe(1);
  });

  test('a store that goes away withdraws nothing, is told once, and again when it is back', async () => {
    server.put('10.42.201.0-24', peer('192.168.1.21'));
    const { overlay } = await attempt();
    await until(() => dataplane.table.size === 1, { what: 'the route' });
    server.partition('us');
    await until(() => !overlay.status().store.ok, { what: 'the outage to show' });
    expect(dataplane.table.size).toBe(1);
    server.heal('us');
    await until(() => overlay.status().store.ok, { what: 'the store to be back' });
    expect(messages('error').filter((line) => line.startsWith('the store is away'))).toHaveLength(1);
    expect(messages('info')).toContain('the store is back');
  });
});

describe('the own lease', () => {
  const key = (overlay: Overlay): string => overlay.lease.subnet.toString().replace('/', '-');

  test('deleted: acquired again, and nothing on the host changes', async () => {
    const { overlay, calls } = await attempt();
    const before = { calls: [...calls], events: [...dataplane.events], file: await readFile(subnetFile, 'utf8') };
    const own = key(overlay);
    server.delete(own);
    await until(() => stored().includes(own), { what: 'the lease to be back' });
    await until(() => overlay.status().leaseHeld, { what: 'the overlay to hold it' });
    expect({ calls, events: dataplane.events, file: await readFile(subnetFile, 'utf8') }).toEqual(before);
    expect(messages('error')).toEqual([expect.stringMatching(/our lease is gone.*served meanwhile/)]);
  });

  test('taken: the new subnet is in place before the old one is let go', async () => {
    const { overlay, calls } = await attempt();
    const old = overlay.lease.subnet.toString();
    dataplane.events.length = 0;
    calls.length = 0;
    server.put(key(overlay), peer('192.168.1.99', { Owner: 'thief' }));
    await until(() => overlay.lease.subnet.toString() !== old, { what: 'a new subnet' });
    const now = overlay.lease.subnet.toString();
    await until(() => dataplane.events.length === 2, { what: 'the move' });
    await until(() => calls.length === 2, { what: 'the old address to go' });
    const host = (subnet: string): string => subnet.replace('/24', '/32');
    expect(dataplane.events).toEqual([`local ${old} ${now}`, `local ${now}`]);
    expect(calls).toEqual([`address replace ${host(now)} dev flannel7`, `address del ${host(old)} dev flannel7`]);
    expect(await readFile(subnetFile, 'utf8')).toContain(`FLANNEL_SUBNET=${now.replace('0/24', '1/24')}\n`);
    expect(dataplane.table.get(old)).toBe('192.168.1.99:9000');
  });

  test('a move that fails is tried again, and the old subnet is served until it works', async () => {
    let working = false;
    let calls = 0;
    const { overlay } = await attempt({
      host: {
        '-batch -': ({ input = '' }) => {
          if (!input.startsWith('address replace')) return '';
          calls++;
          return working ? '' : commandFailed('ip address replace: no');
        },
      },
    });
    const old = overlay.lease.subnet.toString();
    dataplane.events.length = 0;
    server.put(key(overlay), peer('192.168.1.99', { Owner: 'thief' }));
    await until(() => calls > 0, { what: 'the first try' });
    expect(overlay.lease.subnet.toString()).toBe(old);
    expect(dataplane.events).toEqual([expect.stringMatching(new RegExp(`^local ${old} `))]);
    working = true;
    await until(() => overlay.lease.subnet.toString() !== old, { what: 'the move' });
    expect(messages('error')).toContainEqual(
      expect.stringMatching(/cannot change the subnet, trying again: ip address replace: no/),
    );
  });
});

describe('the host', () => {
  test('a new address of it is known to the data plane, and no peer may have it', async () => {
    const monitor = new QuietMonitor();
    const devices = [link('eth0', 2, ['192.168.1.5'])];
    server.put('10.42.204.0-24', peer('172.18.0.1'));
    const { overlay } = await attempt({ seams: { monitor }, host: { '-j -d address show': () => devices } });
    await until(() => dataplane.table.size === 1, { what: 'the route' });
    dataplane.events.length = 0;
    devices.push(link('docker1', 4, ['172.18.0.1']));
    monitor.say({ addresses: new Set(['docker1']) });
    await until(() => dataplane.table.size === 0, { what: 'the route to go' });
    expect(overlay.status().leases[0]).toMatchObject({ state: 'refused' });
    expect(dataplane.events).toEqual([`local ${overlay.lease.subnet.toString()}`, 'refresh']);
  });

  test('another underlay address: data plane, lease and subnet file follow, the subnet stays', async () => {
    const monitor = new QuietMonitor();
    let address = '192.168.1.5';
    const { overlay } = await attempt({
      seams: { monitor },
      host: {
        '-j -d address show': () => [
          link('lo', 1, []),
          link('eth0', 2, [address], { mtu: address.endsWith('5') ? 1500 : 1400 }),
        ],
      },
    });
    const { subnet } = overlay.lease;
    const before = stored();
    server.put('10.42.201.0-24', peer('192.168.1.21'));
    await until(() => dataplane.table.size === 1, { what: 'the route' });
    dataplane.events.length = 0;
    dataplane.table.clear();
    address = '192.168.1.6';
    monitor.say({ addresses: new Set(['eth0']) });
    await until(() => overlay.lease.attributes.publicIp.toString() === '192.168.1.6', { what: 'the lease' });
    expect(dataplane.events).toEqual(['close', 'open', `local ${subnet.toString()}`]);
    expect(String(dataplane.options?.bind.address)).toBe('192.168.1.6');
    expect(dataplane.options).toMatchObject({ underlayMtu: 1400, device: 'flannel7' });
    expect([...dataplane.table.keys()]).toEqual(['10.42.201.0/24']);
    expect(stored()).toEqual([...before, '10.42.201.0-24'].sort());
    expect(overlay.status()).toMatchObject({ host: { reopened: 1, problems: [] }, leaseHeld: true });
    expect(messages('warn')).toEqual([
      'the underlay has changed, following it: mtu 1500 -> 1400, address 192.168.1.5 -> 192.168.1.6, publicIp 192.168.1.5 -> 192.168.1.6',
      'the data plane is open again',
    ]);
  });

  test('a TUN that is removed is opened again', async () => {
    const { overlay } = await attempt();
    dataplane.events.length = 0;
    dataplane.fail(new PodwireError('DEVICE', 'the TUN device was removed'));
    await until(() => overlay.status().host.reopened === 1, { what: 'the new one' });
    expect(dataplane.events).toEqual(['close', 'open', `local ${overlay.lease.subnet.toString()}`]);
  });

  test('the guard keeps the device, and nothing any more after the end', async () => {
    const guard = new QuietGuard();
    const monitor = new QuietMonitor();
    const { overlay } = await attempt({ seams: { guard, monitor } });
    expect(guard.parts.get('device')).toMatchObject({
      links: [{ device: 'flannel7', up: true, mtu: 1472 }],
      switches: [{ path: 'net/ipv6/conf/flannel7/disable_ipv6', value: '1' }],
    });
    expect(guard.parts.get('device')?.routes?.map(({ destination }) => String(destination))).toEqual(['10.42.0.0/16']);
    await overlay.close();
    expect([guard.closed, monitor.closed, [...guard.parts.keys()]]).toEqual([true, true, []]);
  });
});

describe('close', () => {
  test('keeps the lease and the subnet file; twice is fine', async () => {
    const { overlay } = await attempt();
    const before = stored();
    await Promise.all([overlay.close(), overlay.close()]);
    await overlay.close({ release: true });
    expect(dataplane.events.filter((event) => event === 'close')).toHaveLength(1);
    expect(stored()).toEqual(before);
    expect(await readdir(directory)).toEqual(['podwire-subnet.leases', 'subnet.env']);
  });

  test('with release gives it back', async () => {
    const { overlay } = await attempt();
    await overlay.close({ release: true });
    expect(stored()).toEqual([]);
  });

  test('a store that does not take it back is told, and no failure', async () => {
    const { overlay } = await attempt();
    server.partition('us');
    await overlay.close({ release: true });
    expect(messages('warn')).toContainEqual(expect.stringMatching(/^the lease could not be given back/));
    expect(dataplane.events).toContain('close');
  });

  test('a data plane that fails for good rejects `closed`', async () => {
    const { overlay } = await attempt();
    dataplane.fail(new PodwireError('WORKER', 'gone'));
    await expect(overlay.closed).rejects.toMatchObject({ code: 'WORKER' });
  });
});
