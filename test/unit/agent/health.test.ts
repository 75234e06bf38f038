import { describe, expect, test } from 'vitest';
import { CACHE_MS, DEAD_AFTER_MS, Health, type HealthSeams, problemsOf } from '../../../src/agent/health.js';
import { PodwireError } from '../../../src/errors.js';
import type { OverlayStatus } from '../../../src/index.js';
import { Address, Prefix } from '../../../src/net/prefix.js';

function host() {
  const state = {
    now: 0,
    looks: 0,
    started: true,
    workers: ['running', 'restarting'],
    leaseHeld: true,
    expiresAt: new Date(Date.now() + 3_600_000) as Date | undefined,
    written: true,
    file: true,
    device: true,
    interfaces: { flannel0: ['10.42.7.0'], eth0: ['192.168.1.5', 'fd00::5'] } as Record<string, string[] | undefined>,
    routes: new Set(['10.42.0.0/16 flannel0', 'fd42::/48 flannel0']),
    engine: true,
    failing: [] as string[],
    device6: undefined as string | undefined,
  };
  const status = (): OverlayStatus | undefined => {
    if (!state.started) return undefined;
    return {
      network: { network: Prefix.parse('10.42.0.0/16'), ipv6Network: Prefix.parse('fd42::/48') },
      interface: { name: 'eth0', address: Address.parse('192.168.1.5'), address6: Address.parse('fd00::5') },
      lease: { subnet: Prefix.parse('10.42.7.0/24'), expiresAt: state.expiresAt },
      leaseHeld: state.leaseHeld,
      host: { failing: state.failing },
      device: 'flannel0',
      ...(state.device6 === undefined ? {} : { device6: state.device6 }),
      subnetFile: { path: '/run/flannel/subnet.env', written: state.written },
      dataplane: state.engine ? { workers: state.workers.map((worker) => ({ state: worker })) } : undefined,
    } as unknown as OverlayStatus;
  };
  const seams: HealthSeams = {
    now: () => state.now,
    deviceExists: async () => state.device,
    hasRoute: async (prefix, device) => {
      state.looks++;
      return state.routes.has(`${prefix.toString()} ${device}`);
    },
    networkInterfaces: () =>
      Object.fromEntries(
        Object.entries(state.interfaces).map(([name, list]) => [name, list?.map((address) => ({ address }))]),
      ) as ReturnType<HealthSeams['networkInterfaces']>,
    fileExists: async () => state.file,
  };
  return { state, health: new Health(status, seams) };
}

const verbose = new URLSearchParams('verbose');
const plain = new URLSearchParams();

describe('ready', () => {
  test('says flanneld’s words, and on request what was looked at', async () => {
    const { health } = host();
    expect(await health.routes['/readyz']?.(plain)).toEqual({ status: 200, body: 'flanneld is ready' });
    expect((await health.routes['/readyz']?.(verbose))?.body).toBe(
      '[+] device\n[+] route\n[+] underlay\n[+] workers\n[+] lease\n[+] host\n[+] subnet file\nflanneld is ready\n',
    );
  });

  test('a device of its own for IPv6 counts for IPv6', async () => {
    const { state, health } = host();
    state.device6 = 'flannel-v6.1';
    expect((await health.routes['/readyz']?.(verbose))?.body).toContain('[-] device: flannel-v6.1 is down');
    state.interfaces['flannel-v6.1'] = ['fd42:0:0:7::'];
    health.forget();
    expect((await health.routes['/readyz']?.(verbose))?.body).toContain(
      '[-] route: fd42::/48 is not routed to flannel-v6.1',
    );
    state.routes.delete('fd42::/48 flannel0');
    state.routes.add('fd42::/48 flannel-v6.1');
    health.forget();
    expect((await health.routes['/readyz']?.(plain))?.status).toBe(200);
  });

  test.each<[string, (state: ReturnType<typeof host>['state']) => void, string]>([
    ['starting', (state) => (state.started = false), '[-] start: the agent is starting'],
    ['device down', (state) => delete state.interfaces['flannel0'], '[-] device: flannel0 is down or has no address'],
    [
      'device gone',
      (state) => {
        delete state.interfaces['flannel0'];
        state.device = false;
      },
      '[-] device: the device flannel0 is gone',
    ],
    [
      'route',
      (state) => state.routes.delete('10.42.0.0/16 flannel0'),
      '[-] route: 10.42.0.0/16 is not routed to flannel0',
    ],
    [
      'IPv6 route',
      (state) => state.routes.delete('fd42::/48 flannel0'),
      '[-] route: fd42::/48 is not routed to flannel0',
    ],
    ['underlay', (state) => delete state.interfaces['eth0'], '[-] underlay: eth0 is down, gone or without an address'],
    [
      'underlay address',
      (state) => (state.interfaces['eth0'] = ['192.168.1.5']),
      '[-] underlay: eth0 has no longer the address fd00::5',
    ],
    [
      'workers',
      (state) => (state.workers = ['restarting', 'starting']),
      '[-] workers: no worker runs (restarting, starting)',
    ],
    ['lease', (state) => (state.leaseHeld = false), '[-] lease: the lease of 10.42.7.0/24 is lost'],
    [
      'expiry',
      (state) => (state.expiresAt = new Date(Date.now() - 1)),
      '[-] lease: the lease of 10.42.7.0/24 has expired',
    ],
    ['host', (state) => (state.failing = ['route 10.42.8.0/24']), '[-] host: not as it must be: route 10.42.8.0/24'],
    ['unwritten', (state) => (state.written = false), '[-] subnet file: /run/flannel/subnet.env could not be written'],
    ['file', (state) => (state.file = false), '[-] subnet file: /run/flannel/subnet.env is gone'],
  ])('turns bad without: %s, and good again', async (_, damage, line) => {
    const { state, health } = host();
    const { interfaces, routes, ...rest } = state;
    const before = { ...rest, interfaces: { ...interfaces }, routes: new Set(routes) };
    damage(state);
    expect(await health.routes['/readyz']?.(plain)).toEqual({ status: 503, body: 'flanneld is not ready yet' });
    expect((await health.routes['/readyz']?.(verbose))?.body).toContain(line);
    expect((await health.ready()).checks.filter(({ problem }) => problem !== undefined)).toHaveLength(1);
    Object.assign(state, before, { now: CACHE_MS });
    expect((await health.ready()).ok).toBe(true);
  });

  test('a reservation never expires, and a kernel’s data plane has no workers and routes of its own', async () => {
    const { state, health } = host();
    state.expiresAt = undefined;
    state.engine = false;
    state.routes.clear();
    expect((await health.ready()).ok).toBe(true);
  });

  test('an overlay that is just ending counts as none', async () => {
    const health = new Health(() => {
      throw new PodwireError('CLOSED', 'the overlay has ended');
    });
    expect(problemsOf(await health.ready())).toBe('the agent is starting');
    expect(health.live().ok).toBe(true);
  });

  test('looks once a second at most, however many ask', async () => {
    const { state, health } = host();
    await Promise.all([health.ready(), health.ready(), health.ready()]);
    state.now = CACHE_MS - 1;
    await health.ready();
    expect(state.looks).toBe(2);
    state.now = CACHE_MS;
    await health.ready();
    expect(state.looks).toBe(4);
    health.forget();
    await health.ready();
    expect(state.looks).toBe(6);
  });

  test('a look that fails is a bad check, not an error', async () => {
    const { state, health } = host();
    state.routes.has = () => {
      throw new Error('EMFILE');
    };
    expect((await health.routes['/readyz']?.(verbose))?.body).toContain('[-] route: cannot be looked at: EMFILE');
  });
});

describe('live', () => {
  test('says flanneld’s words, also while starting', () => {
    const { state, health } = host();
    state.started = false;
    state.now = 10 * DEAD_AFTER_MS;
    expect(health.routes['/healthz']?.(plain)).toEqual({ status: 200, body: 'flanneld is running' });
  });

  test('turns bad when no worker has run for long, and good with the first that does', () => {
    const { state, health } = host();
    expect(health.live().ok).toBe(true);
    state.workers = ['restarting', 'restarting'];
    state.now = DEAD_AFTER_MS - 1;
    expect(health.live().ok).toBe(true);
    state.now = DEAD_AFTER_MS;
    expect(health.routes['/healthz']?.(plain)).toEqual({
      status: 503,
      body: 'podwire is not healthy: no worker has run for 30 s: restart the agent',
    });
    state.workers = ['restarting', 'running'];
    expect(health.live().ok).toBe(true);
    state.workers = ['restarting', 'restarting'];
    state.now += DEAD_AFTER_MS - 1;
    expect(health.live().ok).toBe(true);
  });
});
