/**
 * The loop of a worker allocates nothing: no garbage collection in 200,000 packets. Seen through V8's --trace-gc, whose
 * lines name the isolate: `[pid:0xisolate] … ms: Scavenge …`.
 */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { EngineLab } from '../support/engine-lab.js';
import type { Host } from '../support/engine-lab.js';
import { until } from '../support/process.js';
import type { Remote } from '../support/remote.js';
import { missing } from '../support/requires.js';

const MIB = 1 << 20;
const needs = { root: true, tun: true, commands: ['ip'], files: ['dist/dataplane/dataplane.js'] };

/** Makes every turn of a worker allocate a little, to show that the test would see it. */
const wasteful = `data:text/javascript,${encodeURIComponent(`
  import { isMainThread } from 'node:worker_threads';
  if (!isMainThread) {
    const load = Atomics.load;
    Atomics.load = (words, index) => { globalThis.kept = new Array(200).fill(index); return load(words, index); };
  }`)}`;

const isolateOf = (line: string): string | undefined => /^\[\d+:(0x[0-9a-f]+)\]/.exec(line)?.[1];

describe.skipIf(missing(needs))('garbage in workers', () => {
  let lab: EngineLab;
  let a: Host;
  let b: Host;
  let podA: Remote;
  let podB: Remote;

  beforeAll(async () => {
    lab = await EngineLab.create(2);
    [a, b] = lab.hosts as [Host, Host];
    podA = await lab.remote(a.pod);
    podB = await lab.remote(b.pod);
    await podA.udpListen(a.podAddress, 9);
    await podB.udpListen(b.podAddress, 9);
  });
  afterAll(async () => await lab[Symbol.asyncDispose]());

  it.each([
    { what: 'none while packets flow', node: [], collections: false },
    { what: 'some when the loop allocates: the control', node: ['--import', wasteful], collections: true },
  ])(
    '$what',
    async ({ node, collections }) => {
      await using peer = await lab.remote(b.ns);
      await using engine = await lab.remote(a.ns, [...node, '--trace-gc', '--expose-gc']);
      await lab.open(engine, a, { workers: 2 });
      await lab.open(peer, b, { workers: 1 });
      // The main thread's isolate is the one that answers to gc(); all others are workers'.
      let from = engine.foreign.length;
      await engine.call('collectGarbage');
      const main = await until(
        () => {
          const forced = engine.foreign.slice(from).find((line) => /Mark-Compact.*(testing|runtime|gc)/i.test(line));
          return forced === undefined ? undefined : isolateOf(forced);
        },
        { what: 'the main thread’s garbage collection' },
      );
      const before = await engine.stats();
      const packets = async (): Promise<number> => {
        const { egressPackets = 0, ingressPackets = 0 } = await engine.changes(before);
        return Math.min(egressPackets, ingressPackets);
      };
      const port = await podB.tcpListen(b.podAddress);
      await podA.call('udpFlood', { address: b.podAddress, port: 9, size: 200, flows: 8 });
      await podB.call('udpFlood', { address: a.podAddress, port: 9, size: 200, flows: 8 });
      // Until the code is compiled; then the load that counts.
      await until(async () => (await packets()) > 40_000, { what: 'warm-up', timeoutMs: 40_000 });
      await podA.tcpSend(b.podAddress, port, 16 * MIB);
      from = engine.foreign.length;
      const seen = await packets();
      await until(async () => (await packets()) > seen + 160_000, { what: 'load', timeoutMs: 60_000, intervalMs: 100 });
      await podA.tcpSend(b.podAddress, port, 16 * MIB);
      await podA.call('udpFloodStop');
      await podB.call('udpFloodStop');
      const inWorkers = engine.foreign.slice(from).filter((line) => ![undefined, main].includes(isolateOf(line)));
      if (collections) expect(inWorkers.length).toBeGreaterThan(10);
      else expect(inWorkers).toEqual([]);
    },
    120_000,
  );
});
