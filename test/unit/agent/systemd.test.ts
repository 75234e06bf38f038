import { describe, expect, test } from 'vitest';
import { ServiceManager } from '../../../src/agent/systemd.js';
import type { Logger } from '../../../src/dataplane/logger.js';

function manager(environment: NodeJS.ProcessEnv, answer: () => number = () => 0, pid = 77) {
  const sent: string[] = [];
  const warned: string[] = [];
  const logger = { warn: (_: object, line: string) => void warned.push(line) } as unknown as Logger;
  const send = (address: string, text: string): number => {
    sent.push(`${address} ${text}`);
    return answer();
  };
  return { sent, warned, manager: ServiceManager.fromEnvironment(environment, { logger, send, pid }) };
}

test('without NOTIFY_SOCKET nothing is sent', () => {
  const { sent, manager: service } = manager({ WATCHDOG_USEC: 'x' });
  service.ready('here');
  service.status('there');
  service.alive();
  service.reloading();
  service.stopping();
  service.retry();
  expect([sent, service.isPresent, service.watchdogMs]).toEqual([[], false, undefined]);
});

test('the messages of sd_notify(3)', () => {
  const { sent, manager: service } = manager({ NOTIFY_SOCKET: '@n' });
  const before = process.hrtime.bigint() / 1_000n;
  service.reloading();
  service.ready('one\nline');
  service.status('one line');
  service.status('another');
  service.alive();
  service.stopping();
  const [reloading = '', ...rest] = sent;
  const usec = /^@n RELOADING=1\nMONOTONIC_USEC=(\d+)$/.exec(reloading)?.[1] ?? '0';
  expect(BigInt(usec)).toBeGreaterThanOrEqual(before);
  expect(rest).toEqual([
    '@n READY=1\nSTATUS=one line',
    '@n STATUS=another',
    '@n WATCHDOG=1',
    '@n STOPPING=1\nSTATUS=stopping',
  ]);
});

test('a long status is cut', () => {
  const { sent, manager: service } = manager({ NOTIFY_SOCKET: '/n' });
  service.status('ä'.repeat(5_000));
  expect(Buffer.byteLength(sent[0] ?? '')).toBeLessThan(600);
});

describe('environment', () => {
  test('programs that the agent starts do not inherit it', () => {
    const environment = { NOTIFY_SOCKET: '/n', WATCHDOG_USEC: '1000000', WATCHDOG_PID: '77', PATH: '/bin' };
    expect(manager(environment).manager.watchdogMs).toBe(1_000);
    expect(environment).toEqual({ PATH: '/bin' });
  });

  test.each([
    [{ WATCHDOG_USEC: '30000000' }, 30_000],
    [{ WATCHDOG_USEC: '30000000', WATCHDOG_PID: '78' }, undefined],
    [{ WATCHDOG_USEC: '0' }, undefined],
    [{ WATCHDOG_USEC: '-5' }, undefined],
    [{ WATCHDOG_USEC: 'soon' }, undefined],
  ])('%j: every %s ms', (environment, expected) => {
    expect(manager({ NOTIFY_SOCKET: '/n', ...environment }).manager.watchdogMs).toBe(expected);
  });
});

test('a failure is told once, and READY is said again until it is taken', () => {
  let answer = -11;
  const { sent, warned, manager: service } = manager({ NOTIFY_SOCKET: '/n' }, () => answer);
  service.ready('up');
  service.retry();
  expect(warned).toEqual(['the service manager cannot be told READY=1']);
  answer = 0;
  service.retry();
  service.retry();
  expect(sent).toEqual(Array.from({ length: 3 }, () => '/n READY=1\nSTATUS=up'));
  answer = -111;
  service.alive();
  service.alive();
  expect(warned).toHaveLength(2);
});
