import { describe, it } from 'vitest';
import { openMemoryLink, packetPortContract } from '../../../src/testing.js';

describe('the port in memory', () => {
  for (const { name, run } of packetPortContract((outer) => Promise.resolve(openMemoryLink(outer)))) it(name, run);
});

describe('the port in memory, with latency', () => {
  const open = packetPortContract((outer) => Promise.resolve(openMemoryLink(outer, { latencyTicks: 3 })));
  for (const { name, run } of open) it(name, run);
});
