import { closeSync, constants, openSync, readFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { LogWriter } from '../../../src/agent/log-writer.js';
import { ok, Process, root, until } from '../../support/process.js';
import { missing } from '../../support/requires.js';

let directory: string;
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'pw-log-'));
});
afterEach(async () => {
  await rm(directory, { recursive: true });
});

test('lines arrive at once and in order', () => {
  const path = join(directory, 'log');
  const fd = openSync(path, 'a');
  const writer = new LogWriter(fd);
  for (let i = 0; i < 100; i++) writer.write(`line ${i}\n`);
  closeSync(fd);
  expect(readFileSync(path, 'utf8')).toBe(Array.from({ length: 100 }, (_, i) => `line ${i}\n`).join(''));
  expect(writer.dropped).toBe(0);
});

test('a full disk loses lines and nothing else', () => {
  const fd = openSync('/dev/full', 'w');
  const writer = new LogWriter(fd);
  writer.write('a\n');
  writer.write('b\n');
  writer.flush();
  closeSync(fd);
  expect(writer.dropped).toBe(2);
});

describe('a pipe', () => {
  const openPipe = async (): Promise<{ reader: () => number; writerFd: number }> => {
    const path = join(directory, 'pipe');
    await ok('mkfifo', [path]);
    const keep = openSync(path, constants.O_RDWR | constants.O_NONBLOCK);
    return { reader: () => keep, writerFd: openSync(path, constants.O_WRONLY | constants.O_NONBLOCK) };
  };

  test('whose reader is stuck costs bounded memory and no time; when it reads again, it gets whole lines in order', async () => {
    const { reader, writerFd } = await openPipe();
    const writer = new LogWriter(writerFd);
    const line = (i: number): string => `${String(i).padStart(7, '0')}${'x'.repeat(1_000)}\n`;
    const before = performance.now();
    for (let i = 0; i < 3_000; i++) writer.write(line(i));
    expect(performance.now() - before).toBeLessThan(2_000);
    // About 1 MiB waits, and 64 KiB are in the pipe.
    expect(writer.dropped).toBeGreaterThan(1_500);
    expect(writer.dropped).toBeLessThan(2_100);
    const kept = 3_000 - writer.dropped;
    const chunks: Buffer[] = [];
    const { readSync } = await import('node:fs');
    await until(
      () => {
        const chunk = Buffer.alloc(1 << 16);
        try {
          chunks.push(chunk.subarray(0, readSync(reader(), chunk)));
        } catch {
          // Nothing to read yet.
        }
        return Buffer.concat(chunks).length === kept * line(0).length;
      },
      { what: 'all kept lines', intervalMs: 1 },
    );
    expect(Buffer.concat(chunks).toString()).toBe(Array.from({ length: kept }, (_, i) => line(i)).join(''));
    closeSync(writerFd);
    closeSync(reader());
  });

  test('whose reader is gone loses lines and nothing else', async () => {
    const { reader, writerFd } = await openPipe();
    const writer = new LogWriter(writerFd);
    writer.write('a\n');
    closeSync(reader());
    writer.write('b\n');
    writer.write('c\n');
    closeSync(writerFd);
    expect(writer.dropped).toBe(2);
  });
});

describe.skipIf(missing({ files: ['dist/agent/log.js'] }))('standard error of a process', () => {
  const script = `
    import { createLog } from ${JSON.stringify(join(root, 'dist/agent/log.js'))};
    const log = createLog({ level: 'info', format: 'json' });
    for (let i = 0; i < 2000; i++) log.info({ i, pad: 'x'.repeat(500) }, 'message ' + i);
    process.stdout.write('alive');
    process.exit(0);
  `;
  const program = (target: string): Process =>
    new Process('sh', ['-c', `exec "$0" --input-type=module -e "$1" ${target}`, process.execPath, script]);

  test.each([
    ['on a full disk', '2>/dev/full'],
    ['that is closed', '2>&-'],
  ])('%s: the process goes on and ends as it wants', async (_, target) => {
    const finished = await program(target).finished;
    expect([finished.code, finished.signal, finished.stdout]).toEqual([0, null, 'alive']);
  });

  test('that nobody reads: the process ends all the same', async () => {
    await ok('mkfifo', [join(directory, 'stuck')]);
    const hold = openSync(join(directory, 'stuck'), constants.O_RDWR | constants.O_NONBLOCK);
    await using stuck = program(`2>${join(directory, 'stuck')}`);
    const finished = await stuck.finished;
    expect([finished.code, finished.stdout]).toEqual([0, 'alive']);
    closeSync(hold);
  });
});
