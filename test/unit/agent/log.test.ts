import { describe, expect, test } from 'vitest';
import {
  createLog,
  formatLine,
  LOG_BURST,
  LOG_WINDOW_MS,
  type LogFormat,
  type LogLevel,
} from '../../../src/agent/log.js';

function capture(format: LogFormat, isTerminal = false, level: LogLevel = 'info') {
  const lines: string[] = [];
  let now = 0;
  const log = createLog({
    level,
    format,
    isTerminal,
    now: () => now,
    destination: { write: (line: string) => void lines.push(line) },
  });
  return { lines, log, pass: (ms: number) => (now += ms) };
}

describe('format', () => {
  test('JSON: level and time as text, no host name, no pid', () => {
    const { lines, log } = capture('json');
    log.info({ subnet: '10.1.2.0/24' }, 'lease acquired');
    const record = JSON.parse(lines[0] ?? '') as Record<string, unknown>;
    expect(record).toMatchObject({ level: 'info', subnet: '10.1.2.0/24', msg: 'lease acquired' });
    expect(Object.keys(record).sort()).toEqual(['level', 'msg', 'subnet', 'time']);
    expect(String(record['time'])).toMatch(/^\d{4}-\d\d-\d\dT/);
  });

  test('pretty: one readable line', () => {
    const { lines, log } = capture('pretty');
    log.warn({ device: 'flannel0', why: 'two words', mtu: 1472 }, 'device is up');
    expect(lines.map((line) => line.slice(13))).toEqual([
      'warn  device is up  device=flannel0 why="two words" mtu=1472\n',
    ]);
    expect(lines[0]).toMatch(/^\d\d:\d\d:\d\d\.\d{3} /);
  });

  test.each([
    [true, true],
    [false, false],
  ])('auto on a terminal %s is pretty %s', (isTerminal, pretty) => {
    const { lines, log } = capture('auto', isTerminal);
    log.info('hello');
    expect(lines[0]?.startsWith('{')).toBe(!pretty);
  });

  test('a line that is no record of ours passes unchanged', () => {
    expect(formatLine('plain\n', false)).toBe('plain\n');
  });

  test('level', () => {
    const { lines, log } = capture('json', false, 'warn');
    log.info({}, 'a');
    log.warn({}, 'b');
    log.error({}, 'c');
    expect(lines).toHaveLength(2);
  });
});

describe('rate limit', () => {
  test('a burst of one message passes, the rest is held back and counted', () => {
    const { lines, log, pass } = capture('json');
    for (let i = 0; i < LOG_BURST + 25; i++) log.info({ i }, 'peer joined');
    expect(lines).toHaveLength(LOG_BURST);
    log.info({}, 'another message');
    expect(lines).toHaveLength(LOG_BURST + 1);
    pass(LOG_WINDOW_MS);
    log.info({ i: 'late' }, 'peer joined');
    expect(JSON.parse(lines.at(-1) ?? '')).toMatchObject({ i: 'late', suppressed: 25, msg: 'peer joined' });
    log.info({}, 'peer joined');
    expect(JSON.parse(lines.at(-1) ?? '')).not.toHaveProperty('suppressed');
  });

  test('a message without fields is held back likewise, and tells the count', () => {
    const { lines, log, pass } = capture('json');
    for (let i = 0; i < LOG_BURST + 1; i++) log.info('plain');
    expect(lines).toHaveLength(LOG_BURST);
    pass(LOG_WINDOW_MS);
    log.info('plain');
    expect(JSON.parse(lines.at(-1) ?? '')).toMatchObject({ msg: 'plain', suppressed: 1 });
  });

  test('a flood of ever new messages costs bounded memory and passes', () => {
    const { lines, log } = capture('json');
    for (let i = 0; i < 3_000; i++) log.info({}, `message ${i}`);
    expect(lines).toHaveLength(3_000);
  });
});
