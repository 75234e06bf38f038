import { describe, it } from 'vitest';
import { openMemoryLink, packetPortContract } from '../../../src/testing.js';

describe('the port in memory', () => {
  for (const { name, run } of packetPortContract((outer, format) => Promise.resolve(openMemoryLink(outer, {}, format))))
    it(name, run);
});

describe('the port in memory, with latency', () => {
  const open = packetPortContract((outer, format) =>
    Promise.resolve(openMemoryLink(outer, { latencyTicks: 3 }, format)),
  );
  for (const { name, run } of open) it(name, run);
});
