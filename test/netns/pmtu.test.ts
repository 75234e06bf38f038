/**
 * Path MTU probing with the real raw-socket on real kernels:
 *
 *   ns a                         ns r (router)                    ns b
 *   eth0 10.77.1.2/24  ───────── left 10.77.1.1/24
 *        fd77:1::2/64            right 10.77.2.1/24 ───────────── eth0 10.77.2.2/24
 *   MTU 1500                     MTU 1400 both ends                    fd77:2::2/64
 */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { NetNs, veth } from '../support/netns.js';
import { icmp, icmpv6, ipv4, ramp, toHex, udpPacket } from '../support/packets.js';
import { ok, root, until, type Process } from '../support/process.js';
import { missing } from '../support/requires.js';

const child = `${root}/test/netns/pmtu-child.mjs`;
const B4 = '10.77.2.2';
const B6 = 'fd77:2::2';
const needs = {
  root: true,
  commands: ['ip', 'setpriv'],
  files: ['dist/dataplane/pmtu.js', 'node_modules/raw-socket/build/Release/raw.node'],
};

interface Report {
  readonly stats: Record<'probes' | 'answers' | 'reports' | 'absurd' | 'silent', number> & { probing: string };
  readonly paths: readonly { mtu: number; state: string }[];
}

/** A table in a child process; short intervals, so that what it does in minutes takes seconds. */
class Watcher implements AsyncDisposable {
  readonly process: Process;
  #asked = 0;

  constructor(ns: NetNs, addresses: readonly string[]) {
    const probe = { intervalMs: 300, raiseIntervalMs: 600, reportIntervalMs: 100, timeoutMs: 500, jitter: 0 };
    this.process = ns.spawn(
      process.execPath,
      [child, 'watch', JSON.stringify({ underlayMtu: 1500, probe }), ...addresses],
      {
        stdio: ['pipe', 'pipe', 'pipe'],
      },
    );
  }

  get #lines(): Record<string, unknown>[] {
    return this.process.stdout
      .split('\n')
      .slice(0, -1)
      .map((line) => JSON.parse(line) as Record<string, unknown>);
  }

  /** All changes so far, as `address mtu`. */
  get changes(): string[] {
    return this.#lines
      .filter((line) => 'change' in line)
      .map((line) => `${String(line['change'])} ${String(line['mtu'])}`);
  }

  async ask(): Promise<Report> {
    const number = ++this.#asked;
    this.process.child.stdin!.write('\n');
    const answer = await until(
      () => {
        if (!this.process.running) throw new Error(`the watcher ended:\n${this.process.stderr}`);
        return this.#lines.filter((line) => 'stats' in line)[number - 1];
      },
      { what: 'an answer of the watcher' },
    );
    return answer as unknown as Report;
  }

  /** Waits until all paths have this MTU. */
  async mtus(least: number, most: number): Promise<void> {
    let last: Report | undefined;
    await until(
      async () => {
        last = await this.ask();
        return last.paths.every(({ mtu }) => mtu >= least && mtu <= most);
      },
      { what: `path MTUs of ${least}–${most}`, timeoutMs: 30_000, intervalMs: 50 },
    ).catch((error: unknown) => {
      throw new Error(`${String(error)}; last: ${JSON.stringify(last)}`);
    });
  }

  /** Waits until every path went through two more rounds, at least. */
  async rounds(): Promise<Report> {
    const from = (await this.ask()).stats.probes;
    return await until(
      async () => {
        const now = await this.ask();
        return now.stats.probes >= from + now.paths.length * 4 && now;
      },
      { what: 'further rounds', intervalMs: 50 },
    );
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.process[Symbol.asyncDispose]();
  }
}

describe.skipIf(missing(needs))('path MTU probing', () => {
  let a: NetNs;
  let r: NetNs;
  let b: NetNs;

  beforeAll(async () => {
    a = await NetNs.create('net', 'a');
    r = await NetNs.create('net', 'r');
    b = await NetNs.create('net', 'b');
    await veth({ ns: a, name: 'eth0', address: '10.77.1.2/24' }, { ns: r, name: 'left', address: '10.77.1.1/24' });
    await veth({ ns: r, name: 'right', address: '10.77.2.1/24' }, { ns: b, name: 'eth0', address: '10.77.2.2/24' });
    for (const [ns, device, address] of [
      [a, 'eth0', 'fd77:1::2/64'],
      [r, 'left', 'fd77:1::1/64'],
      [r, 'right', 'fd77:2::1/64'],
      [b, 'eth0', 'fd77:2::2/64'],
    ] as const) {
      await ns.ip('address', 'add', address, 'dev', device, 'nodad');
    }
    await r.sysctl({ 'net.ipv4.ip_forward': 1, 'net.ipv6.conf.all.forwarding': 1 });
    for (const [ns, via4, via6] of [
      [a, '10.77.1.1', 'fd77:1::1'],
      [b, '10.77.2.1', 'fd77:2::1'],
    ] as const) {
      await ns.ip('route', 'add', 'default', 'via', via4);
      await ns.ip('-6', 'route', 'add', 'default', 'via', via6);
    }
  });

  afterAll(async () => {
    for (const ns of [a, r, b]) await ns?.[Symbol.asyncDispose]();
  });

  async function middleMtu(mtu: number): Promise<void> {
    await r.ip('link', 'set', 'right', 'mtu', String(mtu));
    await b.ip('link', 'set', 'eth0', 'mtu', String(mtu));
  }

  it('finds the smaller link, does not fall for forged reports as the kernel does, and follows the link up', async () => {
    await middleMtu(1400);
    await using watcher = new Watcher(a, [B4, B6]);
    await watcher.mtus(1400, 1400);
    expect([...watcher.changes].sort()).toEqual([`${B4} 1400`, `${B6} 1400`]);

    // Somebody who is no router of theirs tells a that no more than 600 (1280) bytes pass.
    const quote4 = ipv4({
      src: '10.77.1.2',
      dst: B4,
      protocol: 1,
      dontFragment: true,
      payload: icmp(8, 0, 0x10001, ramp(40)),
    });
    const quote6 = udpPacket({ src: 'fd77:1::2', dst: B6, payload: ramp(40) });
    const ends6 = { src: B6, dst: 'fd77:1::2' };
    const forged4 = icmp(3, 4, 600, quote4);
    const forged6 = icmpv6(ends6, 2, 0, 1280, quote6);
    const before = (await watcher.ask()).stats;
    await b.ok(process.execPath, [child, 'send', '10.77.1.2', toHex(forged4), '20']);
    await b.ok(process.execPath, [child, 'send', 'fd77:1::2', toHex(forged6), '20']);

    // The forgery is good: the kernel believes it.
    await until(async () => (await a.ip('route', 'get', B4)).includes('mtu 600'), {
      what: 'the kernel to believe the forged report',
    });
    const after = await watcher.rounds();
    // The router's true ones, about tries to use more, come on top.
    expect(after.stats.reports - before.reports).toBeGreaterThanOrEqual(40);
    expect(after.paths.map(({ mtu, state }) => [mtu, state])).toEqual([
      [1400, 'confirmed'],
      [1400, 'confirmed'],
    ]);
    expect(watcher.changes).toHaveLength(2);

    // Absurd ones do not even cause a probe.
    await b.ok(process.execPath, [child, 'send', '10.77.1.2', toHex(icmp(3, 4, 8, quote4)), '5']);
    await until(async () => (await watcher.ask()).stats.absurd === 5, { what: 'absurd reports to be counted' });

    await middleMtu(1500);
    await watcher.mtus(1500, 1500);
    // All the while the kernel went by what was forged: 600, then the least that it lets itself be told.
    expect(await a.ip('route', 'get', B4)).toMatch(/expires .* mtu (600|lock 552)/);
  });

  it('finds a black hole that reports nothing, and a smaller link of its own', async () => {
    await middleMtu(1500);
    await using watcher = new Watcher(a, [B4, B6]);
    await watcher.rounds();
    expect(watcher.changes).toEqual([]);

    // Only the receiving end shrinks: the veth then drops silently what is more than 4 bytes (a VLAN tag) too long.
    await b.ip('link', 'set', 'eth0', 'mtu', '1350');
    await watcher.mtus(1350, 1354);

    await a.ip('link', 'set', 'eth0', 'mtu', '1300');
    await watcher.mtus(1300, 1300);
    await a.ip('link', 'set', 'eth0', 'mtu', '1500');
    await middleMtu(1500);
    await watcher.mtus(1500, 1500);
  });

  it('changes nothing while a peer does not answer pings, whatever its path', async () => {
    await middleMtu(1500);
    await using watcher = new Watcher(a, [B4, B6]);
    await watcher.rounds();
    await b.sysctl({ 'net.ipv4.icmp_echo_ignore_all': 1, 'net.ipv6.icmp.echo_ignore_all': 1 });
    await middleMtu(1400);
    await until(async () => (await watcher.ask()).stats.silent === 2, {
      what: 'both peers to be silent',
      timeoutMs: 20_000,
    });
    expect(watcher.changes).toEqual([]);
    await b.sysctl({ 'net.ipv4.icmp_echo_ignore_all': 0, 'net.ipv6.icmp.echo_ignore_all': 0 });
    await watcher.mtus(1400, 1400);
  });

  it('says why it is not available: without the right, and in a worker thread', async () => {
    const opened = async (...command: string[]): Promise<unknown> =>
      JSON.parse(await ok(command[0]!, command.slice(1)));
    expect(await opened(process.execPath, child, 'open')).toEqual({ opened: true });
    expect(
      await opened('setpriv', '--bounding-set=-net_raw', '--inh-caps=-net_raw', process.execPath, child, 'open'),
    ).toEqual({
      opened: false,
      code: 'PERMISSION',
      message: 'a raw ICMP socket was refused (Operation not permitted): it needs CAP_NET_RAW',
    });
    expect(await opened(process.execPath, child, 'open', 'worker')).toEqual({
      opened: false,
      code: 'UNSUPPORTED',
      message: 'path MTU probing needs raw-socket, which only works on the main thread',
    });
  });
});
