/**
 * `/metrics` of real agents and real workers: the same numbers at both doors, and counters that go on when a worker is
 * started again.
 */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { createMetrics } from '../../src/agent/metrics.js';
import { STOP_THROW } from '../../src/dataplane/worker.js';
import { AGENT_NEEDS, AgentBed, type AgentHost } from '../support/agents.js';
import { EngineLab, answers, type Host } from '../support/engine-lab.js';
import { type MetricFamily, parseExposition, sampleOf } from '../support/exposition.js';
import { until } from '../support/process.js';
import type { Remote } from '../support/remote.js';
import { missing } from '../support/requires.js';
import { overlayStatus } from '../unit/agent/fake-status.js';

type Families = ReadonlyMap<string, MetricFamily>;

/** Every sample of every counter of the data plane and the process. */
function counters(families: Families): Map<string, number> {
  const found = new Map<string, number>();
  for (const { name, type, samples } of families.values()) {
    if (type === 'counter') for (const [labels, value] of samples) found.set(name + labels, value);
  }
  return found;
}

function fallen(before: Families, after: Families): string[] {
  const now = counters(after);
  return [...counters(before)].filter(([key, value]) => !((now.get(key) ?? -1) >= value)).map(([key]) => key);
}

describe.skipIf(missing(AGENT_NEEDS))('the metrics of an agent', () => {
  let bed: AgentBed;
  beforeAll(async () => {
    bed = await AgentBed.create();
    await bed.reset();
  });
  afterAll(async () => await bed[Symbol.asyncDispose]());

  async function scrape(host: AgentHost, where: object): Promise<Families> {
    const script = `
      require('http').get(${JSON.stringify({ path: '/metrics', ...where })}, (response) => {
        if (response.statusCode !== 200) process.exitCode = 1;
        response.pipe(process.stdout);
      })`;
    return parseExposition(await host.ns.ok(process.execPath, ['-e', script]));
  }

  it('are served beside the health checks and at the control socket, and count what passes', async () => {
    const { a, b } = bed;
    await Promise.all([bed.startReady(a, '--healthz-port=9100', '--healthz-ip=127.0.0.1'), bed.startReady(b)]);
    await bed.connected();
    const http = { host: '127.0.0.1', port: 9100 };
    const socketPath = `${a.run}/podwire-subnet.sock`;
    const first = await scrape(a, http);
    expect(sampleOf(first, 'podwire_up')).toBe(1);
    expect(sampleOf(first, 'podwire_ready')).toBe(1);
    expect(sampleOf(first, 'podwire_lease_held')).toBe(1);
    expect(sampleOf(first, 'podwire_leases', 'state="routed"')).toBe(1);
    expect(sampleOf(first, 'podwire_store_up')).toBe(1);
    const sent = `direction="egress",peer="${b.underlay}"`;
    expect(sampleOf(first, 'podwire_peer_packets_total', sent)).toBeGreaterThan(0);
    await bed.connected();
    const second = await scrape(a, { socketPath });
    expect(sampleOf(second, 'podwire_peer_packets_total', sent)).toBeGreaterThan(
      sampleOf(first, 'podwire_peer_packets_total', sent)!,
    );
    expect([...second.keys()]).toEqual([...first.keys()]);
    expect(fallen(first, second)).toEqual([]);
  });
});

describe.skipIf(missing({ root: true, tun: true, commands: ['ip', 'ping'], files: ['dist/dataplane/dataplane.js'] }))(
  'the metrics of a data plane',
  () => {
    let lab: EngineLab;
    let engine: Remote;
    let a: Host;
    let b: Host;
    beforeAll(async () => {
      lab = await EngineLab.create(2);
      [a, b] = lab.hosts as [Host, Host];
      engine = await lab.remote(a.ns);
      await lab.open(engine, a, { workers: 2 });
      await lab.open(await lab.remote(b.ns), b, { workers: 1 });
    });
    afterAll(async () => await lab[Symbol.asyncDispose]());

    it('never fall when a worker is started again', async () => {
      let dataplane = await engine.stats();
      const metrics = createMetrics({ version: 'test', overlay: () => overlayStatus({ dataplane }) });
      const read = async (): Promise<Families> => {
        dataplane = await engine.stats();
        return parseExposition((await metrics.handler()).body);
      };
      const pass = async (): Promise<void> =>
        expect(await answers(a.pod, '-c', '5', '-i', '0.02', b.podAddress)).toBe(5);
      await pass();
      const before = await read();
      expect(sampleOf(before, 'podwire_packets_total', 'direction="egress"')).toBeGreaterThanOrEqual(5);
      for (const worker of [0, 1]) await engine.call('injectFailure', { worker, how: STOP_THROW });
      const restarting = await until(
        async () => {
          const families = await read();
          expect(fallen(before, families)).toEqual([]);
          const restarts = (worker: number) =>
            sampleOf(families, 'podwire_worker_restarts_total', `worker="${worker}"`);
          const running = sampleOf(families, 'podwire_workers', 'state="running"');
          return restarts(0) === 1 && restarts(1) === 1 && running === 2 && families;
        },
        { what: 'both workers to be back' },
      );
      await pass();
      const after = await read();
      expect(fallen(restarting, after)).toEqual([]);
      const egress = 'direction="egress"';
      expect(sampleOf(after, 'podwire_packets_total', egress)).toBeGreaterThanOrEqual(
        sampleOf(before, 'podwire_packets_total', egress)! + 5,
      );
    });
  },
);
