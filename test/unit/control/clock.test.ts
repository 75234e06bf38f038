import { afterEach, describe, expect, it, vi } from 'vitest';
import { Backoff, ManualClock, pause, systemClock, throwIfAborted } from '../../../src/control/clock.js';

describe('manual clock', () => {
  it('fires timers in order, each at its own time', async () => {
    const clock = new ManualClock(1000);
    const fired: string[] = [];
    clock.timer(() => {
      fired.push(`a ${clock.now()}`);
      clock.timer(() => fired.push(`c ${clock.now()}`), 5);
    }, 10);
    const cancel = clock.timer(() => fired.push('never'), 12);
    clock.timer(() => fired.push(`b ${clock.now()}`), 20);
    cancel();
    await clock.advance(30);
    expect(fired).toEqual(['a 1010', 'c 1015', 'b 1020']);
    expect([clock.now(), clock.monotonic(), clock.pendingTimers]).toEqual([1030, 30, 0]);
  });

  it('jumps without time passing', async () => {
    const clock = new ManualClock(1000);
    clock.jump(-500);
    expect([clock.now(), clock.monotonic()]).toEqual([500, 0]);
  });
});

describe('pause', () => {
  it('ends early when aborted, and leaves no timer behind', async () => {
    const clock = new ManualClock();
    const stop = new AbortController();
    const paused = pause(clock, 1000, stop.signal);
    stop.abort();
    expect(await paused).toBe(false);
    expect(clock.pendingTimers).toBe(0);
    expect(await pause(clock, 1000, stop.signal)).toBe(false);
    const whole = pause(clock, 1000);
    await clock.advance(1000);
    expect(await whole).toBe(true);
  });
});

describe('system clock', () => {
  afterEach(() => vi.useRealTimers());

  it('keeps delays that setTimeout cannot count', () => {
    vi.useFakeTimers();
    const fired = vi.fn();
    systemClock.timer(fired, 2 ** 31 + 1000);
    const cancel = systemClock.timer(fired, 2 ** 31 + 2000);
    vi.advanceTimersByTime(2 ** 31 + 999);
    expect(fired).not.toHaveBeenCalled();
    vi.advanceTimersByTime(1);
    expect(fired).toHaveBeenCalledOnce();
    cancel();
    vi.advanceTimersByTime(10_000);
    expect(fired).toHaveBeenCalledOnce();
  });
});

describe('backoff', () => {
  it('doubles to its ceiling, jittered downwards by half at most', () => {
    const low = new Backoff({ minMs: 100, maxMs: 1000 }, () => 0);
    expect(Array.from({ length: 6 }, () => low.nextMs())).toEqual([50, 100, 200, 400, 500, 500]);
    const high = new Backoff({ minMs: 100, maxMs: 1000 }, () => 1);
    expect(Array.from({ length: 5 }, () => high.nextMs())).toEqual([100, 200, 400, 800, 1000]);
    high.reset();
    expect(high.nextMs()).toBe(100);
  });
});

it('says what was cancelled', () => {
  expect(() => throwIfAborted(AbortSignal.abort(), 'acquiring a lease')).toThrow(
    expect.objectContaining({ code: 'ABORTED', message: 'acquiring a lease was cancelled' }),
  );
  expect(() => throwIfAborted(undefined, 'x')).not.toThrow();
});
