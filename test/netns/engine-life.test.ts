/**
 * How a data plane begins and ends: what cannot be opened is one clear line and leaves nothing behind; whatever ends it
 * (close, process.exit, an uncaught exception, a device that is deleted) ends it at once, also under a flood.
 */
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import type { DataplaneOptions } from '../../src/dataplane/dataplane.js';
import { EngineLab } from '../support/engine-lab.js';
import type { Host } from '../support/engine-lab.js';
import { until } from '../support/process.js';
import type { Remote } from '../support/remote.js';
import { RemoteError } from '../support/remote.js';
import { missing } from '../support/requires.js';

/** Far above the 100 ms that a stop may take on a quiet machine: what is proved is that it never hangs. */
const SOON_MS = 1000;
/** The fastest of several must be far below the second after which a blocked worker would wake up by itself. */
const PROMPT_MS = 250;
const needs = { root: true, tun: true, commands: ['ip', 'ping', 'setpriv'], files: ['dist/dataplane/dataplane.js'] };

describe.skipIf(missing(needs))('life of a data plane', () => {
  let lab: EngineLab;
  let a: Host;
  let b: Host;
  let podA: Remote;
  let podB: Remote;

  beforeAll(async () => {
    lab = await EngineLab.create(2);
    [a, b] = lab.hosts as [Host, Host];
    podA = await lab.remote(a.pod);
    podB = await lab.remote(b.pod);
    await podA.udpListen(a.podAddress, 9);
    await podB.udpListen(b.podAddress, 9);
  });
  afterAll(async () => await lab[Symbol.asyncDispose]());

  const devices = async (): Promise<string[]> =>
    (JSON.parse(await a.ns.ip('-j', 'link', 'show')) as { ifname: string }[]).map(({ ifname }) => ifname);

  describe('what cannot be opened', () => {
    let one: Remote;
    let two: Remote;

    beforeEach(async () => {
      one = await lab.remote(a.ns);
      two = await lab.remote(a.ns);
    });
    afterEach(async () => {
      await one[Symbol.asyncDispose]();
      await two[Symbol.asyncDispose]();
    });

    const refused = async (remote: Remote, options: Partial<DataplaneOptions>): Promise<RemoteError> => {
      const before = await devices();
      const error = await remote.open(lab.options(a, options)).then(
        () => expect.unreachable('it was opened'),
        (cause: unknown) => cause,
      );
      expect(error).toBeInstanceOf(RemoteError);
      const { message } = error as RemoteError;
      expect(message).not.toContain('\n');
      expect(message.length).toBeLessThan(250);
      expect(await devices()).toEqual(before);
      return error as RemoteError;
    };

    it.each([1, 3])('a port that another agent with %i workers has', async (workers) => {
      await one.open(lab.options(a, { workers }));
      const error = await refused(two, { device: 'other0', workers });
      expect(error.code).toBe('PORT_IN_USE');
      expect(error.message).toMatch(/UDP port 8285 on 192\.168\.77\.1 is in use.*\(bind: EADDRINUSE\)$/);
      expect(error).toMatchObject({ errno: 'EADDRINUSE', syscall: 'bind' });
      // Nothing is left of the attempt: the port was never taken, and another one is free.
      await two.open(lab.options(a, { device: 'other0', bind: { address: a.underlay, port: 8286 } }));
    });

    it.each([1, 3])('a device that another agent with %i workers has', async (workers) => {
      await one.open(lab.options(a, { workers }));
      const other = { bind: { address: a.underlay, port: 8286 }, workers };
      const error = await refused(two, other);
      expect(error.code).toBe('DEVICE_IN_USE');
      expect(error.message).toMatch(/flannel0 exists already.*--device \(TUNSETIFF: EBUSY\)$/);
      // Its sockets are closed again: the same port can be had with another device.
      await two.open(lab.options(a, { ...other, device: 'other0' }));
    });

    it('two agents on one host, each with its own port and a device of the default pattern', async () => {
      const pattern = { device: 'flannel%d', workers: 2 };
      const first = await one.open(lab.options(a, pattern));
      const second = await two.open(lab.options(a, { ...pattern, bind: { address: a.underlay, port: 8286 } }));
      expect([first.device.name, second.device.name]).toEqual(['flannel0', 'flannel1']);
    });

    it('without CAP_NET_ADMIN', async () => {
      const drop = ['setpriv', '--bounding-set', '-net_admin', '--inh-caps', '-net_admin'];
      await using weak = await lab.remote(a.ns, [], drop);
      const error = await refused(weak, {});
      expect(error.code).toBe('PERMISSION');
      expect(error.message).toMatch(/may not create the TUN device flannel0: run as root or with CAP_NET_ADMIN/);
    });

    it.each<[string, string, Partial<DataplaneOptions>, RegExp]>([
      [
        'an address of another host',
        'INTERFACE',
        { bind: { address: '192.168.77.2' } },
        /192\.168\.77\.2.*does not have/,
      ],
      ['an address that is none', 'INVALID_ADDRESS', { bind: { address: '192.168.77' } }, /192\.168\.77/],
      ['a multicast address', 'INVALID_ARGUMENT', { bind: { address: '224.0.0.1' } }, /bind\.address is 224\.0\.0\.1/],
      ['port 0', 'INVALID_ARGUMENT', { bind: { address: '192.168.77.1', port: 0 } }, /bind\.port is 0.*1 to 65535/],
      ['no workers', 'INVALID_ARGUMENT', { workers: 0 }, /workers is 0.*1 to 32/],
      ['half a worker', 'INVALID_ARGUMENT', { workers: 1.5 }, /workers is 1\.5/],
      ['too long a device name', 'INVALID_ARGUMENT', { device: 'sixteen-letters-' }, /device is .sixteen-letters-./],
      ['a device name with a slash', 'INVALID_ARGUMENT', { device: 'a/b' }, /device is .a\/b./],
      ['an MTU below IPv4’s least', 'INVALID_ARGUMENT', { underlayMtu: 500 }, /underlay MTU.*500.*576/],
      ['a lease that is none', 'INVALID_ADDRESS', { local: ['10.244.1.0/33'] }, /10\.244\.1\.0\/33/],
      ['an unknown rung', 'INVALID_ARGUMENT', { offload: { tun: 'lro' as 'tso' } }, /offload\.tun is .lro..*uso, tso/],
      ['an unknown check', 'INVALID_ARGUMENT', { sourceCheck: 'maybe' as 'off' }, /sourceCheck is .maybe..*lease/],
      ['too many routes', 'INVALID_ARGUMENT', { maxRoutes: 1e9 }, /maxRoutes is 1000000000/],
    ])('%s', async (_, code, options, message) => {
      const error = await refused(one, options);
      expect(error.code).toBe(code);
      expect(error.message).toMatch(message);
    });
  });

  describe('an end', () => {
    let engine: Remote;
    let peer: Remote;

    beforeEach(async () => {
      engine = await lab.remote(a.ns);
      peer = await lab.remote(b.ns);
      await lab.open(engine, a, { workers: 3 });
      await lab.open(peer, b, { workers: 1 });
    });
    afterEach(async () => {
      await engine[Symbol.asyncDispose]();
      await peer[Symbol.asyncDispose]();
    });

    /** Runs with a flood in both directions, until the flood is seen inside the engine. */
    async function flooded<T>(work: () => Promise<T>): Promise<T> {
      const before = await engine.stats();
      await podA.call('udpFlood', { address: b.podAddress, port: 9, size: 200, flows: 8 });
      await podB.call('udpFlood', { address: a.podAddress, port: 9, size: 200, flows: 8 });
      try {
        await until(
          async () => {
            const { egressPackets = 0, ingressPackets = 0 } = await engine.changes(before);
            return egressPackets > 1000 && ingressPackets > 1000;
          },
          { what: 'the flood' },
        );
        return await work();
      } finally {
        await podA.call('udpFloodStop');
        await podB.call('udpFloodStop');
      }
    }

    it('by close(), idle', async () => {
      const times = [];
      for (let i = 0; i < 3; i++) {
        if (i > 0) await engine.open(lab.options(a, { workers: 3 })); // port and name are free again, in this process
        times.push(await engine.close());
        expect(await devices()).not.toContain('flannel0');
      }
      console.log(`close() of an idle data plane: ${times.map((ms) => ms.toFixed(1)).join(', ')} ms`);
      expect(Math.max(...times)).toBeLessThan(SOON_MS);
      expect(Math.min(...times)).toBeLessThan(PROMPT_MS);
      await engine.event('closed');
      expect(engine.events.filter(({ event, error }) => event === 'closed' && error !== undefined)).toEqual([]);
      expect((await engine.stats()).workers.map(({ state }) => state)).toEqual(['stopped', 'stopped', 'stopped']);
      expect(await engine.close()).toBeLessThan(SOON_MS); // once more changes nothing
    });

    it('by close(), while flooded', async () => {
      const ms = await flooded(() => engine.close());
      console.log(`close() of a flooded data plane: ${ms.toFixed(1)} ms`);
      expect(ms).toBeLessThan(SOON_MS);
      expect(await devices()).not.toContain('flannel0');
    });

    it.each([
      ['process.exit()', 'exit', { code: 3 }, 3, ''],
      ['an uncaught exception', 'throw', { message: 'injected' }, 1, 'injected'],
    ])('by %s, idle and flooded', async (_, call, given, code, text) => {
      const times: number[] = [];
      for (const flood of [false, false, false, true]) {
        const end = async (): Promise<number> => {
          const from = performance.now();
          await engine.call(call, given);
          await engine.process.finished;
          return performance.now() - from;
        };
        times.push(flood ? await flooded(end) : await end());
        const finished = await engine.process.finished;
        expect(finished.code).toBe(code);
        expect(finished.stderr).toContain(text);
        expect(await devices()).not.toContain('flannel0');
        engine = await lab.remote(a.ns);
        await lab.open(engine, a, { workers: 3 });
      }
      console.log(`${call}: ${times.map((ms) => ms.toFixed(1)).join(', ')} ms, the last one flooded`);
      expect(Math.max(...times)).toBeLessThan(2 * SOON_MS);
      expect(Math.min(...times.slice(0, -1))).toBeLessThan(PROMPT_MS);
    });

    it.each([false, true])('by the end of its device (flooded: %s)', async (flood) => {
      const remove = async (): Promise<void> => {
        await a.ns.ip('link', 'del', 'flannel0');
        await engine.event('closed');
      };
      await (flood ? flooded(remove) : remove());
      const closed = engine.events.find(({ event }) => event === 'closed');
      expect(closed?.error).toMatchObject({
        code: 'DEVICE',
        message: 'the TUN device flannel0 was removed under the running data plane: open it again',
      });
      expect(await engine.close()).toBeLessThan(SOON_MS);
      // It is said once, and can be done: open it again.
      await lab.open(engine, a, { workers: 3 });
      expect((await engine.stats()).workers.map(({ state }) => state)).toEqual(['running', 'running', 'running']);
      await engine.close();
    });
  });
});
