import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { RawSocketProber, type RawSocket, type RawSocketModule } from '../../../src/dataplane/pmtu-prober.js';
import { Address } from '../../../src/net/prefix.js';
import { bytes, icmp, ipv4, ipv6, onesComplementChecksum, ramp, udpPacket } from '../../support/packets.js';

const PEER = Address.parse('192.0.2.2');
const PEER6 = Address.parse('2001:db8::2');
const LONG = 60_000;

/** Behaves like raw-socket 1.8: one receive buffer for all messages, errors without a code. */
class FakeSocket implements RawSocket {
  readonly settings: [number, number, number | Buffer][] = [];
  readonly sent: { message: Buffer; address: string }[] = [];
  readonly #shared = Buffer.alloc(65_535);
  readonly #listeners = new Map<string, (...args: never[]) => void>();
  sendError: Error | null = null;
  optionError: Error | undefined;
  closed = false;

  on(event: string, listener: (...args: never[]) => void): void {
    this.#listeners.set(event, listener);
  }

  setOption(level: number, option: number, value: number | Buffer): void {
    if (this.optionError) throw this.optionError;
    this.settings.push([level, option, value]);
  }

  send(buffer: Buffer, offset: number, length: number, address: string, after: (error: Error | null) => void): void {
    this.sent.push({ message: Buffer.from(buffer.subarray(offset, offset + length)), address });
    setImmediate(after, this.sendError);
  }

  deliver(message: Uint8Array, source: string): void {
    this.#shared.fill(0xdd);
    this.#shared.set(message);
    (this.#listeners.get('message') as (message: Buffer, source: string) => void)(
      this.#shared.subarray(0, message.length),
      source,
    );
  }

  fail(error: Error): void {
    (this.#listeners.get('error') as (error: Error) => void)(error);
  }

  close(): void {
    this.closed = true;
  }
}

class Bench {
  readonly created: { socket: FakeSocket; protocol: number; addressFamily: number; bufferSize: number }[] = [];
  readonly reports: string[] = [];
  readonly prober: RawSocketProber;

  constructor(prepare: (socket: FakeSocket) => void = () => undefined) {
    const module: RawSocketModule = {
      createSocket: (options) => {
        const socket = new FakeSocket();
        prepare(socket);
        this.created.push({ socket, ...options });
        return socket;
      },
    };
    this.prober = new RawSocketProber(module, (address, mtu) => this.reports.push(`${address.toString()} ${mtu}`));
  }

  get socket(): FakeSocket {
    return this.created.at(-1)!.socket;
  }

  request(): Buffer {
    return this.socket.sent.at(-1)!.message;
  }
}

/** What an IPv4 peer's kernel makes of a request: the same message as type 0, in an IP packet. */
function reply4(request: Buffer, src = '192.0.2.2'): Uint8Array {
  return ipv4({
    src,
    dst: '192.0.2.1',
    protocol: 1,
    payload: icmp(0, 0, request.readUInt32BE(4), request.subarray(8)),
  });
}

function reply6(request: Buffer): Buffer {
  const message = Buffer.from(request);
  message[0] = 129;
  return message;
}

/** `pending` unless the promise has settled. */
async function state<T>(promise: Promise<T>): Promise<T | 'pending'> {
  await new Promise((resolve) => setImmediate(resolve));
  return await Promise.race([promise, Promise.resolve('pending' as const)]);
}

describe('requests', () => {
  it('are echo requests of exactly the asked size, with a right checksum and a fresh nonce', async () => {
    const bench = new Bench();
    const probes = [1500, 1500, 576].map((size) => bench.prober.probe(PEER, size, LONG));
    const messages = bench.socket.sent.map(({ message }) => message);
    expect(messages.map((message) => message.length + 20)).toEqual([1500, 1500, 576]);
    for (const message of messages) {
      expect([message[0], message[1]]).toEqual([8, 0]);
      expect(onesComplementChecksum(message)).toBe(0);
    }
    expect(new Set(messages.map((message) => message.toString('hex', 8, 24))).size).toBe(3);
    expect(new Set(messages.map((message) => message.readUInt16BE(6))).size).toBe(3);
    expect(bench.socket.sent.map(({ address }) => address)).toEqual(Array(3).fill('192.0.2.2'));
    bench.prober.close();
    expect(await Promise.all(probes)).toEqual(['failed', 'failed', 'failed']);
    expect(bench.socket.closed).toBe(true);
  });

  it('leave from a socket that sets DF, believes no report and hears only what it must: IPv4', () => {
    const bench = new Bench();
    void bench.prober.probe(PEER, 600, LONG);
    expect(bench.created).toMatchObject([{ protocol: 1, addressFamily: 1, bufferSize: 65_535 }]);
    // IP_MTU_DISCOVER = PROBE; ICMP_FILTER passes echo reply and destination unreachable.
    expect(bench.socket.settings).toEqual([
      [0, 10, 3],
      [255, 1, 0xffffffff - 0b1001],
    ]);
    bench.prober.close();
  });

  it('leave from a socket that sets DF, believes no report and hears only what it must: IPv6', () => {
    const bench = new Bench();
    void bench.prober.probe(PEER6, 1280, LONG);
    expect(bench.created).toMatchObject([{ protocol: 58, addressFamily: 2 }]);
    const [[level, option, value], [filterLevel, filterOption, filter]] = bench.socket.settings as [
      [number, number, number],
      [number, number, Buffer],
    ];
    expect([level, option, value, filterLevel, filterOption]).toEqual([41, 23, 3, 58, 1]);
    // struct icmp6_filter on a little-endian machine: bit n of byte n / 8 blocks type n.
    const passed = Array.from({ length: 256 }, (_, type) => type).filter(
      (type) => !(filter[type >> 3]! & (1 << (type & 7))),
    );
    expect(passed).toEqual([2, 129]);
    expect(bench.request().length).toBe(1280 - 40);
    expect(bench.request()[0]).toBe(128);
    bench.prober.close();
  });

  it('that cannot be sent end as what that means', async () => {
    const outcome = async (message: string): Promise<string> => {
      const bench = new Bench((socket) => (socket.sendError = new Error(message)));
      return await bench.prober.probe(PEER, 1500, LONG);
    };
    expect(await outcome('Message too long')).toBe('too-big');
    expect(await outcome('Message too large')).toBe('too-big');
    expect(await outcome('Network is unreachable')).toBe('failed');
    expect(await outcome('No buffer space available')).toBe('failed');
    const refused = new Bench((socket) => (socket.optionError = new Error('Operation not permitted')));
    expect(await refused.prober.probe(PEER, 1500, LONG)).toBe('failed');
    expect(refused.socket.closed).toBe(true);
    expect(await new Bench().prober.probe(PEER, 20 + 8 + 15, LONG)).toBe('failed');
  });

  it('end as lost when the time is up, and late answers do no harm', async () => {
    const bench = new Bench();
    expect(await bench.prober.probe(PEER, 600, 1)).toBe('lost');
    bench.socket.deliver(reply4(bench.request()), '192.0.2.2');
    bench.prober.close();
    expect(await bench.prober.probe(PEER, 600, LONG)).toBe('failed');
  });
});

describe('answers', () => {
  it('count with nonce, sender and full length', async () => {
    const bench = new Bench();
    const four = bench.prober.probe(PEER, 1500, LONG);
    const first = bench.socket;
    const six = bench.prober.probe(PEER6, 1400, LONG);
    expect(bench.created).toHaveLength(2);
    first.deliver(reply4(first.sent[0]!.message), '192.0.2.2');
    expect(await state(four)).toBe('answered');
    expect(await state(six)).toBe('pending');
    bench.socket.deliver(reply6(bench.request()), '2001:db8::2');
    expect(await six).toBe('answered');
    bench.prober.close();
  });

  it('are found behind IP options', async () => {
    const bench = new Bench();
    const probe = bench.prober.probe(PEER, 600, LONG);
    const request = bench.request();
    const payload = icmp(0, 0, request.readUInt32BE(4), request.subarray(8));
    bench.socket.deliver(
      ipv4({ src: '192.0.2.2', dst: '192.0.2.1', protocol: 1, options: [1, 1, 1, 1], payload }),
      '192.0.2.2',
    );
    expect(await probe).toBe('answered');
    bench.prober.close();
  });

  it('that are forged do not count: wrong nonce, sender, length or type', async () => {
    const bench = new Bench();
    const probe = bench.prober.probe(PEER, 600, LONG);
    const request = bench.request();
    const forged = Buffer.from(request);
    forged[8] = forged[8]! ^ 1;
    bench.socket.deliver(reply4(forged), '192.0.2.2');
    bench.socket.deliver(reply4(request), '192.0.2.3');
    bench.socket.deliver(reply4(request), 'not an address');
    bench.socket.deliver(reply4(request.subarray(0, request.length - 1)), '192.0.2.2');
    bench.socket.deliver(reply4(Buffer.concat([request, Buffer.alloc(1)])), '192.0.2.2');
    // A ping to ourselves: our own request comes back as type 8.
    bench.socket.deliver(ipv4({ src: '192.0.2.2', protocol: 1, payload: request }), '192.0.2.2');
    expect(await state(probe)).toBe('pending');
    bench.socket.deliver(reply4(request), '192.0.2.2');
    expect(await probe).toBe('answered');
    bench.prober.close();
  });
});

describe('reports', () => {
  const offender = udpPacket({ src: '192.0.2.1', dst: '198.51.100.7', payload: ramp(4) });
  const offender6 = udpPacket({ src: '2001:db8::1', dst: '2001:db8:7::7', payload: ramp(4) });
  const bench4 = (): Bench => {
    const bench = new Bench();
    bench.prober.open(4);
    return bench;
  };
  const unreachable = (code: number, rest: number, quote: Uint8Array): Uint8Array =>
    ipv4({ src: '203.0.113.1', dst: '192.0.2.1', protocol: 1, payload: icmp(3, code, rest, quote) });

  it('name the destination of the quoted packet and the MTU', () => {
    const bench = bench4();
    bench.socket.deliver(unreachable(4, 1400, offender.subarray(0, 28)), '203.0.113.1');
    // The upper half of the field belongs to RFC 4884 lengths and is not the MTU's.
    bench.socket.deliver(unreachable(4, 0xffff0578, offender.subarray(0, 28)), '203.0.113.1');
    expect(bench.reports).toEqual(['198.51.100.7 1400', '198.51.100.7 1400']);
    bench.prober.open(6);
    bench.socket.deliver(bytes([2, 0, 0, 0, 0, 0, 5, 0x14], offender6), '2001:db8::99');
    expect(bench.reports.at(-1)).toBe('2001:db8:7::7 1300');
    bench.prober.close();
  });

  it('of other kinds, or cut short, are none', () => {
    const bench = bench4();
    bench.socket.deliver(unreachable(3, 1400, offender), '203.0.113.1');
    bench.socket.deliver(unreachable(4, 1400, offender.subarray(0, 19)), '203.0.113.1');
    bench.socket.deliver(unreachable(4, 1400, ipv6({ payload: ramp(8) })), '203.0.113.1');
    bench.prober.open(6);
    bench.socket.deliver(bytes([2, 0, 0, 0, 0, 0, 5, 0x14], offender6.subarray(0, 39)), '2001:db8::99');
    bench.socket.deliver(bytes([2, 0, 0, 0, 0, 0, 5, 0x14], offender), '2001:db8::99');
    bench.socket.deliver(bytes([1, 0, 0, 0, 0, 0, 5, 0x14], offender6), '2001:db8::99');
    expect(bench.reports).toEqual([]);
    bench.prober.close();
  });

  it('and anything else that arrives never throws, nor passes for an answer', async () => {
    const bench = bench4();
    const probe4 = bench.prober.probe(PEER, 600, LONG);
    const four = bench.socket;
    const probe6 = bench.prober.probe(PEER6, 1280, LONG);
    const six = bench.socket;
    const seeds = [
      unreachable(4, 1400, offender),
      bytes([2, 0, 0, 0, 0, 0, 5, 0x14], offender6),
      reply4(Buffer.alloc(580)),
      new Uint8Array(0),
    ];
    fc.assert(
      fc.property(
        fc.constantFrom(...seeds),
        fc.array(fc.tuple(fc.nat(60), fc.nat(255)), { maxLength: 5 }),
        fc.nat(100),
        fc.uint8Array({ maxLength: 80 }),
        (seed, changes, cut, noise) => {
          const message = Uint8Array.from(seed.subarray(0, cut));
          for (const [at, value] of changes) if (at < message.length) message[at] = value;
          for (const socket of [four, six]) {
            socket.deliver(message, '192.0.2.2');
            socket.deliver(noise, '2001:db8::2');
          }
        },
      ),
      { numRuns: 2000 },
    );
    expect(await state(probe4)).toBe('pending');
    expect(await state(probe6)).toBe('pending');
    bench.prober.close();
  });
});

describe('a socket that fails', () => {
  it('is closed, and the next probe opens another', async () => {
    const bench = new Bench();
    const lost = bench.prober.probe(PEER, 600, 20);
    const broken = bench.socket;
    broken.fail(new Error('Network is down'));
    broken.fail(new Error('Network is down'));
    expect(broken.closed).toBe(true);
    expect(await lost).toBe('lost');
    const next = bench.prober.probe(PEER, 600, LONG);
    broken.fail(new Error('Network is down'));
    expect(bench.socket.closed).toBe(false);
    const last = bench.prober.probe(PEER, 600, LONG);
    expect(bench.created).toHaveLength(2);
    for (const { message } of bench.socket.sent) bench.socket.deliver(reply4(message), '192.0.2.2');
    expect(await Promise.all([next, last])).toEqual(['answered', 'answered']);
    expect(bench.prober.underWay).toBe(0);
    bench.prober.close();
  });
});
