/** The benchmark's arithmetic: what stands between raw samples and a verdict. */
import { describe, expect, it } from 'vitest';
import { samplesOf } from '../../../bench/control/main.mjs';
import { parseOptions } from '../../../bench/options.mjs';
import { METRICS } from '../../../bench/report/metrics.mjs';
import { ratio, spread, summarise } from '../../../bench/report/stats.mjs';
import { columns, figure } from '../../../bench/report/table.mjs';
import { TARGETS, judge } from '../../../bench/report/targets.mjs';
import { rotated } from '../../../bench/rounds.mjs';
import { workerCollections } from '../../../bench/scale/agent.mjs';
import { searchRate } from '../../../bench/throughput/search.mjs';

const sample = (
  round: number,
  contender: string,
  values: Record<string, number>,
  underlay: 'veth' | 'nic' = 'veth',
) => ({
  round,
  underlay,
  contender,
  values,
});

describe('statistics', () => {
  it('takes the middle value, or the mean of the two middle ones, and the ends', () => {
    expect(spread([3, 1, 2])).toEqual({ median: 2, min: 1, max: 3, count: 3 });
    expect(spread([4, 1, 3, 2])).toEqual({ median: 2.5, min: 1, max: 4, count: 4 });
    expect(spread([10, 9])).toMatchObject({ median: 9.5, min: 9, max: 10 });
  });

  it('divides within a round before it takes the median', () => {
    // The machine was twice as fast in round 2. Medians divided afterwards would give 10/10 = 1.
    const samples = [
      sample(1, 'vxlan', { m: 10 }),
      sample(1, 'podwire', { m: 5 }),
      sample(2, 'vxlan', { m: 20 }),
      sample(2, 'podwire', { m: 10 }),
      sample(3, 'vxlan', { m: 4 }),
      sample(3, 'podwire', { m: 40 }),
    ];
    const which = { underlay: 'veth', metric: 'm', contender: 'podwire', baseline: 'vxlan' };
    expect(ratio(samples, which)).toEqual({ median: 0.5, min: 0.5, max: 10, count: 3 });
  });

  it('leaves out rounds without the baseline, other underlays, and a baseline of 0', () => {
    const samples = [
      sample(1, 'podwire', { m: 5 }),
      sample(2, 'podwire', { m: 6 }),
      sample(2, 'vxlan', { m: 3 }),
      sample(3, 'podwire', { m: 6 }),
      sample(3, 'vxlan', { m: 0 }),
      sample(1, 'vxlan', { m: 1 }, 'nic'),
    ];
    const which = { underlay: 'veth', metric: 'm', contender: 'podwire', baseline: 'vxlan' };
    expect(ratio(samples, which)).toEqual({ median: 2, min: 2, max: 2, count: 1 });
    expect(ratio(samples, { ...which, underlay: 'nic' })).toBeUndefined();
  });

  it('makes one row for each contender that was measured, in the asked order', () => {
    const samples = [sample(1, 'b', { y: 2 }), sample(1, 'a', { x: 1, y: 4 })];
    const order = { underlays: ['veth', 'nic'], metrics: ['x', 'y'], contenders: ['a', 'b'], baseline: 'b' };
    expect(summarise(samples, order).map((row) => [row.metric, row.contender, row.ratio?.median])).toEqual([
      ['x', 'a', undefined],
      ['y', 'a', 2],
      ['y', 'b', 1],
    ]);
  });

  it('rotates the order of contenders so that each is first once', () => {
    expect([0, 1, 2, 3].map((round) => rotated(['a', 'b', 'c'], round).join(''))).toEqual(['abc', 'bca', 'cab', 'abc']);
    expect(rotated([], 2)).toEqual([]);
  });
});

describe('search for the highest rate', () => {
  /** A tunnel that loses what exceeds its capacity, behind a sender with a limit. */
  const tunnel =
    (capacity: number, sender = Infinity) =>
    (asked: number) => {
      const offered = Math.min(asked, sender);
      return Promise.resolve({ offered, loss: Math.max(0, 1 - capacity / offered) });
    };

  const lossyFlood = { offered: 500_000, loss: 0.4 };

  it.each([
    [300_000, 290_000],
    [300_000, 100_000],
    [300_000, 3_000_000],
    [1_000, 300_000],
  ])('finds a capacity of %i from %i to within 5 %%', async (capacity, start) => {
    const found = await searchRate(tunnel(capacity), { flood: lossyFlood, start, maxProbes: 60 });
    expect(found.rate).toBeGreaterThan(capacity * 0.95);
    expect(found.rate).toBeLessThanOrEqual(capacity / 0.99);
    expect(found.senderLimited).toBe(false);
  });

  it('takes a flood without loss as the rate, unless pacing offers more', async () => {
    const flood = { offered: 139_000, loss: 0 };
    const start = 139_000;
    const same = await searchRate(tunnel(500_000, 140_000), { flood, start });
    expect(same).toMatchObject({ rate: 140_000, senderLimited: true });
    expect(same.probes).toHaveLength(1);
    expect(await searchRate(tunnel(500_000, 120_000), { flood, start })).toMatchObject({ rate: 139_000 });
    const more = await searchRate(tunnel(500_000, 200_000), { flood, start });
    expect(more).toMatchObject({ rate: 200_000, senderLimited: true });
    expect((await searchRate(tunnel(140_000), { flood, start })).rate).toBeGreaterThanOrEqual(139_000);
  });

  it('asks a slow sender for more as long as that gives more', async () => {
    // Offers 80 % of what it is asked for, as a sender does that often waits for its processor; at most 400,000.
    const probe = (asked: number) => Promise.resolve({ offered: Math.min(asked * 0.8, 400_000), loss: 0 });
    const found = await searchRate(probe, { flood: lossyFlood, start: 200_000 });
    expect(found).toMatchObject({ rate: 400_000, senderLimited: true });
  });

  it('goes down to what a lossy and slow sender really sent', async () => {
    const { rate, probes } = await searchRate(tunnel(100_000, 200_000), { flood: lossyFlood, start: 1_000_000 });
    expect(probes[1]?.asked).toBe(200_000);
    expect(rate).toBeGreaterThan(95_000);
    expect(rate).toBeLessThanOrEqual(100_000 / 0.99);
  });

  it('tries a narrow failure once more, and only twice a search', async () => {
    const losses = [0.02, 0, 0.02, 0.02, 0.02, 0.02];
    const asked: number[] = [];
    const probe = (rate: number) => {
      asked.push(rate);
      return Promise.resolve({ offered: rate, loss: losses[asked.length - 1] ?? 1 });
    };
    await searchRate(probe, { flood: lossyFlood, start: 1000, maxProbes: 6 });
    expect(asked.slice(0, 4)).toEqual([1000, 1000, 1250, 1250]);
    expect(new Set(asked.slice(4)).size).toBe(2);
  });

  it('gives 0 and stops when nothing passes', async () => {
    const probe = (offered: number) => Promise.resolve({ offered, loss: 1 });
    const found = await searchRate(probe, { flood: lossyFlood, start: 100, maxProbes: 8 });
    expect(found.rate).toBe(0);
    expect(found.probes).toHaveLength(8);
  });
});

describe('targets', () => {
  it('are about metrics and contenders that exist', () => {
    const known = new Set(METRICS.map((metric) => metric.id));
    expect(TARGETS.filter((target) => !known.has(target.metric))).toEqual([]);
    expect(new Set(METRICS.map((metric) => metric.id)).size).toBe(METRICS.length);
  });

  it('judge the median, say when the range lies on both sides, and know what was not measured', () => {
    const target = {
      title: 't',
      metric: 'm',
      contender: 'podwire',
      against: 'vxlan',
      relation: '>=' as const,
      limits: { veth: 0.75, nic: 1 },
    };
    const rounds = [0.7, 0.8, 0.9].flatMap((value, index) => [
      sample(index + 1, 'podwire', { m: value * 10 }),
      sample(index + 1, 'vxlan', { m: 10 }),
    ]);
    const verdicts = judge(rounds, [target]);
    expect(verdicts.map(({ underlay, verdict, spansLimit }) => ({ underlay, verdict, spansLimit }))).toEqual([
      { underlay: 'veth', verdict: 'reached', spansLimit: true },
      { underlay: 'nic', verdict: 'not measured', spansLimit: false },
    ]);
    expect(judge(rounds, [{ ...target, relation: '<=' }])[0]).toMatchObject({ verdict: 'missed', spansLimit: true });
  });

  it("say when the figure is the sender's limit in most rounds", () => {
    const target = {
      title: 't',
      metric: 'udp64.lossfree',
      contender: 'podwire',
      relation: '>=' as const,
      limits: { veth: 9 },
    };
    const rounds = (limited: readonly number[]) =>
      limited.map((flag, index) => sample(index + 1, 'podwire', { 'udp64.lossfree': 8, 'udp64.senderLimited': flag }));
    expect(judge(rounds([1, 0, 1]), [target])[0]).toMatchObject({ verdict: 'missed', senderLimited: true });
    expect(judge(rounds([0, 0, 1]), [target])[0]).toMatchObject({ verdict: 'missed', senderLimited: false });
    expect(judge(rounds([1]), [{ ...target, metric: 'm' }])[0]).toMatchObject({ senderLimited: false });
  });

  it('judge a figure itself on whichever underlay it was measured', () => {
    const target = { title: 't', metric: 'm', contender: 'podwire', relation: '<' as const, limits: { any: 1 } };
    expect(judge([sample(1, 'podwire', { m: 1 }, 'nic')], [target])[0]?.verdict).toBe('missed');
    expect(judge([sample(1, 'podwire', { m: 0.99 }, 'nic')], [target])[0]?.verdict).toBe('reached');
  });
});

describe('options', () => {
  it('joins several modes', () => {
    const options = parseOptions(['throughput,micro,throughput', '--underlay', 'nic', '--contenders', 'vxlan, direct']);
    expect(options).toMatchObject({
      measures: ['throughput'],
      micro: true,
      underlays: ['nic'],
      contenders: ['vxlan', 'direct'],
      rounds: 3,
    });
  });

  it('knows whom the mode backends measures, unless told otherwise', () => {
    expect(parseOptions(['backends'])).toMatchObject({
      measures: ['throughput', 'pps', 'latency'],
      contenders: expect.arrayContaining(['vxlan', 'podwire-vxlan', 'vxlan-to-podwire']) as string[],
    });
    expect(parseOptions(['backends', '--contenders', 'vxlan'])).toMatchObject({ contenders: ['vxlan'] });
    expect(parseOptions(['throughput'])).toMatchObject({ contenders: undefined });
  });

  it('takes control as a mode of its own', () => {
    expect(parseOptions(['control'])).toMatchObject({ measures: [], micro: false, control: true });
    expect(parseOptions(['all'])).toMatchObject({ control: false });
    expect(parseOptions(['micro,control'])).toMatchObject({ measures: [], micro: true, control: true });
  });

  it.each([
    [[], /one mode/],
    [['fast'], /MODE must be one of throughput.*"fast"/],
    [['pps', 'latency'], /"pps latency"/],
    [['pps', '--rounds', '0'], /--rounds must be a number from 1 to 100, got "0"/],
    [['pps', '--rounds', '1.5'], /whole number, got "1.5"/],
    [['pps', '--seconds', ''], /--seconds must be/],
    [['pps', '--contenders', 'vxlan,openvpn'], /"openvpn"/],
    [['pps', '--colour'], /--colour/],
  ])('refuses %j in one line', (argv: string[], message: RegExp) => {
    expect(() => parseOptions(argv)).toThrow(message);
  });
});

describe('garbage collections in a trace', () => {
  const log = [
    '{"level":30,"msg":"agent is up"}',
    '[77:0x10000]       17 ms: Scavenge 4.1 (4.2) -> 3.4 (5.2) MB',
    '[77:0x20000]      300 ms: Scavenge 4.1 (4.2) -> 3.4 (5.2) MB',
    '[77:0x10000]     9000 ms: Mark-Compact 4.1 (4.2) -> 3.4 (5.2) MB',
    '[77:0x20000]     9001 ms: Scavenge 4.3 (5.7) -> 3.3 (5.7) MB',
    '[77:0x30000:1]   9002 ms: Scavenge 4.3 (5.7) -> 3.3 (5.7) MB',
  ].join('\n');

  it('count those of other threads than the first, from the given time on', () => {
    expect(workerCollections(log, 2000)).toHaveLength(2);
    expect(workerCollections(log, 0)).toHaveLength(3);
    expect(workerCollections('', 0)).toEqual([]);
  });
});

describe('table', () => {
  it('shows figures with three digits or so', () => {
    expect([0, 0.0123, 0.75, 1.5, 12.34, 123.4, 1234.5, Number.NaN].map(figure)).toEqual([
      '0.00',
      '0.012',
      '0.750',
      '1.50',
      '12.3',
      '123',
      '1235',
      '-',
    ]);
  });

  it('aligns columns', () => {
    expect(
      columns([
        ['a', '1'],
        ['bcd', '100'],
      ]),
    ).toEqual(['  a      1', '  bcd  100']);
  });
});

describe('samples of lease control', () => {
  const result = {
    starts: { podwire: [300, 200, 250], first: [400, 380, 390], flanneld: [100, 120, 110] },
    peers: { join: [3, 1, 2], leave: [4] },
    forwarding: { join: Array.from({ length: 100 }, (_, i) => 100 - i), leave: [0] },
    agents: [60, 50, 70],
    scale: { 'control.snapshot': 400 },
  };

  it('are one a start, and everything else with the first', () => {
    const samples = samplesOf(result, '2030-01-01T00:00:00Z');
    expect(samples.map(({ round, contender, values }) => [round, contender, values['control.start']])).toEqual([
      [1, 'podwire', 300],
      [2, 'podwire', 200],
      [3, 'podwire', 250],
      [1, 'flanneld', 100],
      [2, 'flanneld', 120],
      [3, 'flanneld', 110],
    ]);
    expect(samples[0]?.values).toMatchObject({
      'control.seen.p50': 2,
      'control.seen.p99': 3,
      'control.gone.p99': 4,
      'control.join.p50': 50,
      'control.join.p99': 99,
      'control.leave.p99': 0,
      'control.agents': 60,
      'control.snapshot': 400,
    });
    expect(Object.keys(samples[1]!.values)).toEqual(['control.start', 'control.first']);
  });

  it('have words and a unit for every figure', () => {
    const known = new Set(METRICS.map(({ id }) => id));
    for (const { values } of samplesOf(result, '')) for (const id of Object.keys(values)) expect(known).toContain(id);
    for (const { metric } of TARGETS) expect(known).toContain(metric);
  });
});
