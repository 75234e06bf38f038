import { describe, expect, it } from 'vitest';
import { COUNTER_NAMES, KERNEL_DROPS } from '../../../src/dataplane/counters.js';
import { DropLog } from '../../../src/dataplane/drop-log.js';
import { silentLogger } from '../../../src/dataplane/logger.js';
import type { DataplaneStats } from '../../../src/dataplane/stats.js';

function bed() {
  const totals = Object.fromEntries([...COUNTER_NAMES, ...Object.keys(KERNEL_DROPS)].map((name) => [name, 0]));
  const offenders: { unknownSender?: { address: string; count: number } } = {};
  const lines: { fields: object; message: string }[] = [];
  const clock = { ms: 0 };
  let refreshes = 0;
  const log = new DropLog(
    () => ({ totals, offenders }) as unknown as DataplaneStats,
    { ...silentLogger, warn: (fields, message) => lines.push({ fields, message }) },
    () => refreshes++,
    () => clock.ms,
  );
  return { totals, offenders, lines, clock, log, refreshes: () => refreshes };
}

describe('drop log', () => {
  it('says nothing while nothing is dropped, and nothing about multicast', () => {
    const { totals, lines, log } = bed();
    totals['egressPackets'] = 1e6;
    totals['dropMulticast'] = 12;
    log.look();
    expect(lines).toEqual([]);
  });

  it('gives a counter that rose one line a minute, with what came since', () => {
    const { totals, lines, clock, log } = bed();
    totals['dropNoRoute'] = 3;
    log.look();
    for (clock.ms = 1000; clock.ms < 60_000; clock.ms += 1000) {
      totals['dropNoRoute'] += 10;
      log.look();
    }
    expect(lines).toHaveLength(1);
    expect(lines[0]?.fields).toEqual({ counter: 'dropNoRoute', since: 3, total: 3 });
    expect(lines[0]?.message).toMatch(/no lease holds the destination/);
    clock.ms = 60_000;
    log.look();
    expect(lines[1]?.fields).toEqual({ counter: 'dropNoRoute', since: 590, total: 593 });
  });

  it('names the latest unknown sender', () => {
    const { totals, offenders, lines, log } = bed();
    totals['dropUnknownSender'] = 1;
    offenders.unknownSender = { address: '192.0.2.9', count: 1 };
    log.look();
    expect(lines[0]?.fields).toMatchObject({ latestSender: '192.0.2.9' });
  });

  it('has the MTUs read again when the underlay refuses a size', () => {
    const { totals, log, refreshes } = bed();
    log.look();
    expect(refreshes()).toBe(0);
    totals['dropSendTooBig'] = 4;
    log.look();
    log.look();
    expect(refreshes()).toBe(1);
    totals['fallbackUdpSegment'] = 1;
    log.look();
    expect(refreshes()).toBe(2);
  });
});
