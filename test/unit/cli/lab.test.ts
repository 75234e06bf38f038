import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import fc from 'fast-check';
import { labCommand } from '../../../src/cli/lab.js';
import { combine } from '../../../src/cli/lab/checks.js';
import { dropsOf, growth } from '../../../src/cli/counters.js';
import { cut, formatRate } from '../../../src/cli/format.js';
import { percentile, roundTrips, type Figures, type Sample } from '../../../src/cli/lab/figures.js';
import { movesOf } from '../../../src/cli/lab/flow.js';
import { sum } from '../../../src/cli/lab/lab.js';
import { directoryPrefix, isAbandoned, namespacePrefix, startTime } from '../../../src/cli/lab/leftovers.js';
import { judgeDrops } from '../../../src/cli/lab/load.js';
import { fillPattern, intactLength } from '../../../src/cli/lab/pattern.js';
import { checkTun, enterCommand, privilegeOf } from '../../../src/cli/lab/privileges.js';
import { verdict } from '../../../src/cli/lab/report.js';
import { formatDrops, formatSample, LinesView, sparkline, TerminalView } from '../../../src/cli/lab/view.js';
import { throwInsteadOfExit, UsageError } from '../../../src/cli/usage.js';

const sample: Sample = {
  second: 7,
  bitsPerSecond: 8.324e9,
  packetsPerSecond: 712_345,
  rttUs: { p50: 143, p99: 410 },
  drops: { dropNoRoute: 2, dropTooBig: 1 },
  leases: 3,
};

describe('the command line', () => {
  const parse = async (...args: readonly string[]): Promise<unknown> =>
    await throwInsteadOfExit(labCommand()).parseAsync([...args], { from: 'user' });

  it.each([
    ['--hosts', '1', 'from 2 to 63'],
    ['--hosts', '64', 'from 2 to 63'],
    ['--duration', '0', 'from 1 to 3600'],
    ['--duration', '1.5', 'from 1 to 3600'],
    ['--duration', '-3', 'from 1 to 3600'],
  ])('refuses %s %s', async (option, value, limits) => {
    await expect(parse(option, value)).rejects.toThrow(limits);
  });

  it.each([
    [
      ['--backend', 'nebula'],
      '--backend nebula: the lab knows udp, vxlan, vxlan-kernel, host-gw, ipip, ipip-kernel, wireguard, extension',
    ],
    [['--backend', 'alloc'], '--backend alloc: it carries no packets, so there is nothing for the lab to check'],
    [['--backend', 'ipip', '--ipv6'], '--backend ipip carries no IPv6'],
    [['--ipv6', '--dual-stack'], '--ipv6 and --dual-stack: give one of them'],
  ])('refuses %j', async (args, reason) => {
    await expect(parse(...args)).rejects.toThrow(new UsageError(reason));
  });

  it.each(['0', 'two', '65'])('refuses --workers %s', async (value) => {
    await expect(parse('--workers', value)).rejects.toThrow(
      `--workers ${value}: it must be a whole number from 1 to 64`,
    );
  });

  it('refuses surplus arguments', async () => {
    await expect(parse('fast')).rejects.toThrow(/too many arguments/);
  });
});

describe('percentile', () => {
  it('is the nearest rank', () => {
    fc.assert(
      fc.property(fc.array(fc.nat(), { minLength: 1 }), fc.integer({ min: 1, max: 100 }), (values, percent) => {
        const sorted = values.toSorted((a, b) => a - b);
        const value = percentile(sorted, percent / 100);
        // Nearest rank: the smallest value that at least this share of all values does not exceed.
        const reached = (limit: number): boolean =>
          sorted.filter((other) => other <= limit).length * 100 >= percent * sorted.length;
        expect(sorted.filter(reached)[0]).toBe(value);
      }),
    );
  });

  it('has nothing to say about no values', () => {
    expect(percentile([], 0.5)).toBe(0);
    expect(roundTrips([])).toBeNull();
  });

  it('sums up round trips whatever their order', () => {
    expect(roundTrips([30.4, 10.2, 20.6])).toEqual({ count: 3, p50: 21, p99: 30, max: 30 });
  });
});

describe('counters', () => {
  it('adds records name by name', () => {
    expect(sum([{ a: 1, b: 2 }, { b: 3, c: 4 }, {}])).toEqual({ a: 1, b: 5, c: 4 });
  });

  it('grows only', () => {
    expect(growth({ a: 5, b: 9 }, { a: 7, b: 3, c: 1 })).toEqual({ a: 2, c: 1 });
  });

  it('finds drops by name', () => {
    expect(dropsOf({ ingressPackets: 9, dropShort: 0, dropNoRoute: 2 })).toEqual({ dropNoRoute: 2 });
  });
});

describe('judgeDrops', () => {
  const delivered = { ingressPackets: 100_000 };

  it('accepts none, what was provoked, multicast, and a little congestion', () => {
    expect(judgeDrops(delivered, {})).toEqual({ name: 'drops', ok: true, detail: 'none; 100000 packets delivered' });
    const totals = { ...delivered, dropNoRoute: 10, dropMulticast: 5000, dropTunQueue: 500 };
    expect(judgeDrops(totals, { dropNoRoute: 10 }).ok).toBe(true);
  });

  it.each([
    ['dropNoRoute', 11],
    ['dropTunQueue', 501],
    ['dropMalformed', 1],
  ])('does not accept %s %i', (name, count) => {
    const result = judgeDrops({ ...delivered, [name]: count }, { dropNoRoute: 10 });
    expect(result).toEqual({ name: 'drops', ok: false, detail: `${name} ${String(count)}` });
  });
});

describe('movesOf', () => {
  it.each([
    [[[0], [0], [0]], 0],
    [[[1], [0], [0]], 1],
    [[[0, 1], [1], [1]], 1],
    [[[0], [], [0]], 0],
    [[[0], [1], [0]], 2],
    [[[1], [0, 1], [0]], 1],
    [
      [
        [0, 1],
        [0, 1],
        [0, 1],
      ],
      3,
    ],
    [[[0, 1, 2, 3], [3], [3]], 3],
    [[], 0],
  ])('%j moves %i times', (slices, moves) => {
    expect(movesOf(slices)).toBe(moves);
  });
});

describe('combine', () => {
  it('shows every failure, and of many successes the first two', () => {
    const good = (detail: string) => ({ ok: true, detail });
    expect(combine([good('a'), good('b'), good('c')])).toEqual({ ok: true, detail: 'a; b; and 1 more' });
    expect(combine([good('a'), { ok: false, detail: 'x' }, good('b'), { ok: false, detail: 'y' }])).toEqual({
      ok: false,
      detail: 'x; y',
    });
  });
});

describe('leftovers', () => {
  it('knows its own names as those of a live run', () => {
    expect(isAbandoned(`${namespacePrefix()}h1`)).toBe(false);
    expect(isAbandoned(`${directoryPrefix()}XYZ`.replace('/run/', ''))).toBe(false);
  });

  it('reads the start time of a process with an awkward name', () => {
    expect(startTime(process.pid)).toMatch(/^[0-9a-z]+$/);
    expect(startTime(0)).toBeUndefined();
  });

  it.each([
    ['pwlab-12-abc-h1', undefined, true],
    ['pwlab-12-abc-h1', 'abc', false],
    ['pwlab-12-abc-h1', 'abd', true],
    ['podwire-lab-12-abc-x1y2', undefined, true],
    ['pwlab-12-h1', undefined, false],
    ['pwlabs-12-abc-h1', undefined, false],
    ['pwbench-12-abc-h1', undefined, false],
  ])('%s whose process %s was started then: abandoned %s', (name, start, abandoned) => {
    expect(isAbandoned(name, (pid) => (pid === 12 ? start : 'other'))).toBe(abandoned);
  });
});

describe('pattern', () => {
  it('differs by seed and finds the first wrong byte', () => {
    fc.assert(
      fc.property(fc.nat(), fc.integer({ min: 1, max: 2000 }), fc.nat(), (seed, length, position) => {
        const expected = fillPattern(new Uint8Array(length), seed);
        const got = expected.slice();
        expect(intactLength(got, expected)).toBe(length);
        const wrong = position % length;
        got[wrong] = got[wrong]! ^ 0x40;
        expect(intactLength(got, expected)).toBe(wrong);
        expect(intactLength(expected.subarray(0, wrong), expected)).toBe(wrong);
      }),
    );
    const texts = new Set(
      Array.from({ length: 500 }, (_, seed) => fillPattern(Buffer.alloc(16), seed).toString('hex')),
    );
    expect(texts.size).toBe(500);
  });
});

describe('privileges', () => {
  it('needs NET_ADMIN and SYS_ADMIN', () => {
    expect(privilegeOf('Name:\tnode\nCapEff:\t000001ffffffffff\n')).toBe('full');
    expect(privilegeOf('CapEff:\t0000000000201000\n')).toBe('full');
    expect(privilegeOf('CapEff:\t0000000000001000\n')).toBe('none');
    expect(privilegeOf('CapEff:\t0000000000200000\n')).toBe('none');
    expect(privilegeOf('')).toBe('none');
  });

  it('says what to do about a TUN driver that is not there', () => {
    const directory = mkdtempSync(join(tmpdir(), 'podwire-lab-test-'));
    const path = join(directory, 'tun');
    expect(() => checkTun(path)).toThrow(`cannot open ${path} (ENOENT): load the driver (modprobe tun)`);
    rmSync(directory, { recursive: true });
    expect(() => checkTun('/dev/null')).not.toThrow();
  });

  it('enters the namespaces of a lab that has its own', () => {
    expect(enterCommand({ pid: undefined })).toBe('');
    expect(enterCommand({ pid: 42 })).toBe('nsenter -t 42 -U --preserve-credentials -m -n -p ');
  });
});

describe('the view', () => {
  it.each([
    [8.324e9, '8.32 Gbit/s'],
    [94.55e6, '94.5 Mbit/s'],
    [999_600, '1000 kbit/s'],
    [12, '12 bit/s'],
    [0, '0 bit/s'],
  ])('writes %d as %s', (value, text) => {
    expect(formatRate(value, 'bit/s')).toBe(text);
  });

  it('writes a second as one line of fixed columns', () => {
    const line = '  7 s  8.32 Gbit/s  712 kpackets/s  RTT 143 µs (p99 410)      leases 3  drops NoRoute 2, TooBig 1';
    expect(formatSample(sample)).toBe(line);
    const quiet = { ...sample, rttUs: undefined, drops: {}, bitsPerSecond: 0, packetsPerSecond: 0 };
    expect(formatSample(quiet).indexOf('leases')).toBe(line.indexOf('leases'));
    expect(formatDrops({})).toBe('none');
  });

  it('scales its bars to the largest value', () => {
    expect(sparkline([0, 50, 100])).toBe('▁▅█');
    expect(sparkline([0, 0])).toBe('▁▁');
    expect(sparkline([])).toBe('');
  });

  it('cuts text to the width', () => {
    expect(cut('abcdef', 6)).toBe('abcdef');
    expect(cut('abcdef', 5)).toBe('abcd…');
  });

  it('writes plain lines', () => {
    let text = '';
    const view = new LinesView({ write: (part) => (text += part) });
    view.step('starting');
    view.sample(sample);
    view.check({ name: 'ping', ok: false, detail: 'no answer' });
    view.end();
    expect(text).toBe(`starting\n${formatSample(sample)}\nFAILED ping            no answer\n`);
  });

  it('redraws a terminal in place, cut to its size, and leaves the last picture', () => {
    const screen = new Screen(60, 8);
    const view = new TerminalView(screen, true);
    view.step('heading');
    for (let second = 1; second <= 3; second += 1) view.sample({ ...sample, second });
    view.check({ name: 'ping', ok: true, detail: 'x'.repeat(100) });
    view.end();
    screen.write('below\n');
    expect(screen.text()).toEqual([
      'heading',
      '',
      `${formatSample({ ...sample, second: 3 }).slice(0, 58)}…`.slice(0, 59),
      '      ███',
      '',
      `✓ ping            ${'x'.repeat(40)}…`,
      'below',
    ]);
    for (let index = 0; index < 10; index += 1) view.check({ name: `c${String(index)}`, ok: true, detail: '' });
    expect(screen.scrolled).toBe(true);
    expect(screen.text().at(-1)?.trimEnd()).toBe('✓ c9');
  });

  it('ends with a verdict', () => {
    const figures: Figures = {
      seconds: 3,
      tcpGbitPerSecond: 4.5,
      peakPacketsPerSecond: 400_000,
      rttIdleUs: { count: 9, p50: 120, p99: 200, max: 300 },
      rttLoadUs: null,
      pings: { sent: 9, lost: 0 },
      drops: {},
    };
    const good = { name: 'ping', ok: true, detail: '' };
    expect(verdict([good], figures)).toBe(
      'TCP 4.50 Gbit/s, up to 400 kpackets/s, RTT 120 µs idle (between programs in the pods)\nPASSED: all 1 checks held\n',
    );
    expect(verdict([good, { name: 'tcp', ok: false, detail: '' }], figures)).toContain('FAILED: 1 of 2 checks: tcp\n');
  });
});

/** A terminal that knows what the view uses: line feed, carriage return, cursor up, clear to the end of line and screen. */
class Screen {
  readonly columns: number;
  readonly rows: number;
  scrolled = false;
  #lines: string[] = [''];
  #row = 0;
  #column = 0;

  constructor(columns: number, rows: number) {
    this.columns = columns;
    this.rows = rows;
  }

  write(text: string): void {
    // oxlint-disable-next-line no-control-regex -- escape sequences are what a terminal reads
    for (const [part, up, sequence] of text.matchAll(/\u001b\[(\d+)A|(\u001b\[[\d;]*[mKJ])|[\s\S]/gu)) {
      if (up !== undefined) {
        // A terminal stops at its top line: a view that goes further up than it may would overwrite the wrong lines.
        expect(this.#row - Number(up)).toBeGreaterThanOrEqual(Math.max(0, this.#lines.length - this.rows));
        this.#row -= Number(up);
      } else if (sequence?.endsWith('K')) this.#set(this.#current().slice(0, this.#column));
      else if (sequence?.endsWith('J')) this.#lines.length = this.#row + 1;
      else if (sequence !== undefined) continue;
      else if (part === '\r') this.#column = 0;
      else if (part === '\n') this.#feed();
      else {
        this.#set(
          this.#current().padEnd(this.#column).slice(0, this.#column) + part + this.#current().slice(this.#column + 1),
        );
        this.#column += 1;
        expect(this.#column).toBeLessThan(this.columns);
      }
    }
  }

  #current(): string {
    return this.#lines[this.#row] ?? '';
  }

  #set(line: string): void {
    this.#lines[this.#row] = line;
  }

  #feed(): void {
    this.#row += 1;
    this.#column = 0;
    if (this.#row === this.#lines.length) this.#lines.push('');
    if (this.#lines.length > this.rows) this.scrolled = true;
  }

  text(): readonly string[] {
    return this.#lines.slice(0, this.#row);
  }
}
