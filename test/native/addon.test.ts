import { Worker } from 'node:worker_threads';
import { afterAll, describe, expect, it } from 'vitest';
import { COUNTER_NAMES } from '../../src/dataplane/counters.js';
import { ROW_BYTES, createFibMemory, rowsView } from '../../src/fib/layout.js';
import * as batch from '../../src/io/batch.js';
import { addon, nativeCounterNames } from '../../src/io/native.js';
import { missing } from '../support/requires.js';

const errno = (name: keyof typeof ERRNO): number => -ERRNO[name];
const ERRNO = { EBADF: 9, EINVAL: 22, ENODEV: 19, ENOTSOCK: 88, EADDRNOTAVAIL: 99 } as const;

const opened: number[] = [];
const keep = (fd: number): number => {
  expect(fd).toBeGreaterThanOrEqual(0);
  opened.push(fd);
  return fd;
};
afterAll(() => {
  for (const fd of opened) expect(addon().closeFd(fd)).toBe(0);
});

describe('constants', () => {
  it('are the same words in C and in TypeScript', () => {
    const { counters: _, checksumVariant: __, ...native } = addon().layout();
    const typescript: Record<string, number> = { NEXTHOP_BYTES: ROW_BYTES };
    for (const [name, value] of Object.entries(batch)) if (typeof value === 'number') typescript[name] = value;
    // One reply is TypeScript's own unit, most lanes C's own bound; every other word must be known to both.
    delete typescript['REPLY_SLOT'];
    const { MAX_LANES: lanes, ...shared } = native as Record<string, number>;
    expect(shared).toEqual(typescript);
    expect(lanes).toBeGreaterThanOrEqual(16);
  });

  it('name the counters in the same order', () => {
    expect(nativeCounterNames()).toEqual(COUNTER_NAMES);
    expect(new Set(COUNTER_NAMES).size).toBe(COUNTER_NAMES.length);
  });

  it('lay a batch out so that the engine takes it', () => {
    const memory = batch.createBatchMemory(COUNTER_NAMES.length, 10);
    expect(memory.udpBytes).toBeGreaterThanOrEqual(batch.UDP_SLOT);
    expect(memory.tunBytes).toBeGreaterThanOrEqual(batch.TUN_SLOT);
    const views = batch.openBatch(memory);
    const regions = [views.meta, views.counters, views.peers, views.reply, views.udp, views.tun]
      .map(({ byteOffset, byteLength }) => [byteOffset, byteOffset + byteLength] as const)
      .sort(([a], [b]) => a - b);
    for (let i = 1; i < regions.length; i++) expect(regions[i]![0]).toBeGreaterThanOrEqual(regions[i - 1]![1]);
    expect(regions.at(-1)![1]).toBeLessThanOrEqual(memory.buffer.byteLength);
  });
});

describe('slow path', () => {
  const loopback = Uint8Array.of(127, 0, 0, 1);
  const options = { receive: true, gro: true, tos: true, reusePort: false, shareAfter: false, bufferBytes: 1 << 16 };

  it('answers a system fault with -errno', () => {
    expect(addon().tunOpen('pwx0', 4, false, true)).toBe(errno('EINVAL'));
    expect(addon().tunOpen('pwx0', -1, false, true)).toBe(errno('EINVAL'));
    expect(addon().tunAttach(-1, true)).toBe(errno('EBADF'));
    expect(addon().tunQueueLength('no-such-dev', 10)).toBeLessThan(0);
    expect(addon().eventSignal(-1)).toBe(errno('EBADF'));
    expect(addon().closeFd(-1)).toBe(errno('EBADF'));
    expect(addon().socketDrops(-1)).toBe(errno('EBADF'));
    expect(addon().socketDrops(keep(addon().eventOpen()))).toBe(errno('ENOTSOCK'));
    expect(addon().linkRead(0x7ffffff0)).toBe(errno('ENODEV'));
    expect(addon().udpOpen(Uint8Array.of(192, 0, 2, 1), 0, options)).toBe(errno('EADDRNOTAVAIL'));
    expect(addon().udpOpen(loopback.subarray(1), 0, options)).toBe(errno('EINVAL'));
    expect(addon().udpOpen(loopback, 65_536, options)).toBe(errno('EINVAL'));
    expect(addon().udpOpen(loopback, -1, options)).toBe(errno('EINVAL'));
    expect(addon().udpOpen(loopback, 0, { ...options, bufferBytes: -1 })).toBe(errno('EINVAL'));
    expect(addon().checksum(loopback, 'md5')).toBe(errno('EINVAL'));
  });

  it('opens what it can, for both families', () => {
    keep(addon().udpOpen(loopback, 0, options));
    keep(addon().udpOpen(Uint8Array.from([...Array<number>(15).fill(0), 1]), 0, options));
    const event = keep(addon().eventOpen());
    for (let i = 0; i < 3; i++) expect(addon().eventSignal(event)).toBe(0);
    expect(addon().linkRead(1)).toMatchObject({ txDropped: 0, rxDropped: 0 });
    expect([0, 64, 127]).toContain(addon().probeUdpSegments());
    expect(addon().noop()).toBeUndefined();
  });

  it.each([
    ['missing arguments', () => (addon().tunOpen as () => unknown)()],
    ['a number for a name', () => addon().tunOpen(7 as never, 3, false, true)],
    ['a name that would be cut', () => addon().tunOpen('sixteen-letters-', 3, false, true)],
    ['a cut name for a queue length', () => addon().tunQueueLength('sixteen-letters-', 10)],
    ['text for a number', () => addon().closeFd('1' as never)],
    ['an array for bytes', () => addon().udpOpen([127, 0, 0, 1] as never, 0, options)],
    ['nothing for options', () => addon().udpOpen(loopback, 0, undefined as never)],
    ['an ArrayBuffer for bytes', () => addon().checksum(new ArrayBuffer(8) as never, '')],
    ['no configuration', () => addon().engineCreate(undefined as never)],
    ['an empty configuration', () => addon().engineCreate({})],
  ])('throws TypeError for %s', (_, call) => {
    expect(call).toThrow(TypeError);
  });
});

describe('engineCreate', () => {
  const memory = batch.createBatchMemory(COUNTER_NAMES.length, 8);
  const views = batch.openBatch(memory);
  const config = () => ({
    tunFd: opened[0] ?? keep(addon().eventOpen()),
    udpFd: opened[0] ?? keep(addon().eventOpen()),
    wakeFd: opened[0] ?? keep(addon().eventOpen()),
    icmp4Fd: -1,
    icmp6Fd: -1,
    sendFds: Int32Array.of(0, 1),
    virtioBytes: 10,
    tunTcp: true,
    tunUdp: true,
    udpSegments: 64,
    batchCalls: true,
    spin: 1,
    spinNs: 50_000,
    meta: views.meta,
    counters: views.counters,
    peers: views.peers,
    tunArena: views.tun,
    udpArena: views.udp,
    replyArena: views.reply,
    nextHops: rowsView(createFibMemory({ maxRoutes: 1, maxNextHops: 1, readers: 1 })),
    reader: new Int32Array(new SharedArrayBuffer(4)),
  });

  it('takes a configuration that holds, once', () => {
    const engine = addon().engineCreate(config());
    if (typeof engine === 'number') expect.unreachable(`refused with ${engine}`);
    engine.destroy();
    engine.destroy();
    expect(engine.turn(0)).toBe(errno('EBADF'));
  });

  it.each([
    ['no TUN', { tunFd: -1 }],
    ['no socket', { udpFd: -1 }],
    ['no eventfd', { wakeFd: -1 }],
    ['no send socket', { sendFds: new Int32Array(0) }],
    ['too many send sockets', { sendFds: new Int32Array(65) }],
    ['a bad send socket', { sendFds: Int32Array.of(1, -1) }],
    ['half a virtio header', { virtioBytes: 5 }],
    ['a negative virtio header', { virtioBytes: -10 }],
    ['superpackets without virtio headers', { virtioBytes: 0 }],
    ['too many segments', { udpSegments: 128 }],
    ['negative segments', { udpSegments: -1 }],
    ['a negative spin', { spinNs: -1 }],
    ['tables that are too small', { meta: new Int32Array(batch.META_TOTAL_WORDS - 1) }],
    ['too few counters', { counters: new Float64Array(COUNTER_NAMES.length - 1) }],
    ['a TUN arena that holds no packet', { tunArena: new Uint8Array(batch.TUN_SLOT - 1) }],
    ['a UDP arena that holds no datagram', { udpArena: new Uint8Array(batch.UDP_SLOT - 1) }],
    ['no next hops', { nextHops: new Uint8Array(batch.ROW_WORDS) }],
    ['no FIB word', { reader: new Int32Array(0) }],
  ])('refuses %s', (_, change) => {
    expect(addon().engineCreate({ ...config(), ...change })).toBe(errno('EINVAL'));
  });

  it.each(['sendFds', 'meta', 'counters', 'peers', 'tunArena', 'nextHops', 'reader'])(
    'throws TypeError when %s is no typed array',
    (name) => {
      expect(() => addon().engineCreate({ ...config(), [name]: [1, 2, 3] })).toThrow(TypeError);
    },
  );
});

describe.skipIf(missing({ files: ['dist/io/native.js'] }))('in worker threads', () => {
  const module = JSON.stringify(new URL('../../dist/io/native.js', import.meta.url).href);
  const code = `
    const { parentPort } = require('node:worker_threads');
    import(${module}).then(({ addon }) => {
      const bytes = new Uint8Array(new SharedArrayBuffer(4)).fill(1);
      parentPort.postMessage({ layout: addon().layout(), sum: addon().checksum(bytes, '') });
    });`;

  it('loads in several at once, next to the main thread, and unloads with them', async () => {
    const { counters: names, ...here } = addon().layout();
    for (let round = 0; round < 2; round++) {
      const answers = await Promise.all(
        Array.from({ length: 3 }, async () => {
          const worker = new Worker(code, { eval: true });
          const answer = await new Promise((resolve, reject) => {
            worker.once('message', resolve);
            worker.once('error', reject);
          });
          await worker.terminate();
          return answer;
        }),
      );
      for (const answer of answers) {
        expect(answer).toEqual({ layout: { ...here, counters: names }, sum: 0x0202 });
      }
    }
    expect(addon().checksum(Uint8Array.of(1, 1, 1, 1), '')).toBe(0x0202);
  });
});
