import { describe, expect, it } from 'vitest';
import { seed } from '../support/random.js';
import type { SimulationOptions } from './overlay-simulation.js';
import { OverlaySimulation } from './overlay-simulation.js';

const CALM = { churn: 0, forged: 0, steps: 150 };
const WILD = { churn: 0.15, forged: 0.15, steps: 400 };
const SCENARIOS: Readonly<Record<string, Omit<SimulationOptions, 'seed' | 'hosts'>>> = {
  'a perfect underlay': { ...CALM },
  'latency only': { ...CALM, latencyTicks: 5 },
  'loss, duplicates and reordering': { ...CALM, loss: 0.1, duplication: 0.1, reordering: 0.3, latencyTicks: 2 },
  'leases that move': { ...WILD },
  'leases that move over a bad underlay': { ...WILD, loss: 0.1, duplication: 0.1, reordering: 0.3, latencyTicks: 3 },
  'paths that swallow large packets': { ...WILD, pathMtu: 1250, latencyTicks: 1 },
  'queues that overflow': { ...WILD, socketQueue: 3 },
  'turned bits': { ...WILD, corruption: 0.3, reordering: 0.2, latencyTicks: 1 },
};
/** Some that are always the same, and one that is new each time. */
const SEEDS = [1, 2, 3, seed];

describe('an overlay in simulation', () => {
  for (const [name, scenario] of Object.entries(SCENARIOS)) {
    it.each(SEEDS.map((seed, i) => ({ seed, hosts: 3 + ((i * 2 + (seed % 2)) % 6) })))(
      `${name}: $hosts hosts, seed $seed`,
      ({ seed, hosts }) => {
        const { sent, delivered, answered, fragments, changes, counters } = new OverlaySimulation({
          ...scenario,
          seed,
          hosts,
        }).run();
        // The run itself fails on anything wrong; this is that it was not empty.
        expect(sent).toBeGreaterThan(scenario.steps);
        expect(delivered).toBeGreaterThan(sent / 20);
        expect(fragments).toBeGreaterThan(0);
        expect(answered).toBeGreaterThan(0);
        if (scenario.churn > 0) expect(changes).toBeGreaterThan(hosts + 10);
        if (scenario.forged > 0) {
          expect(counters['dropSpoofedSource']).toBeGreaterThan(0);
          expect(counters['dropUnknownSender']).toBeGreaterThan(0);
          expect(counters['dropNotLocal']).toBeGreaterThan(0);
        }
      },
      30_000,
    );
  }

  it('repeats itself for a seed', () => {
    const run = () => new OverlaySimulation({ ...SCENARIOS['turned bits']!, seed: 7, hosts: 4 }).run();
    expect(run()).toEqual(run());
  });
});
