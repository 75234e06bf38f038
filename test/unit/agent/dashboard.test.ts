import { readFileSync } from 'node:fs';
import { beforeAll, expect, test } from 'vitest';
import { createMetrics } from '../../../src/agent/metrics.js';
import { newLeaseCounts } from '../../../src/control/lease-counts.js';
import { type MetricFamily, parseExposition } from '../../support/exposition.js';
import { root } from '../../support/process.js';
import { engineStats, firewallStats, hostState, overlayStatus, peerStats, routed } from './fake-status.js';

/** What deploy/ asks Prometheus for must be there. Every metric has at least one sample in this agent. */
let families: ReadonlyMap<string, MetricFamily>;
beforeAll(async () => {
  const probe = { state: 'ok' as const, rttUs: 250, lossPermille: 0 };
  const peer = { ...peerStats('192.168.1.8', { lastHeardMs: 10 }), probe };
  const notices = { conflict: 1, foreign: 1, corrupt: 1, degraded: 1 };
  const times = { acquiredAt: new Date(), writtenAt: new Date() };
  const overlay = {
    ...overlayStatus({
      leases: [routed('10.42.8.0/24', '192.168.1.8')],
      dataplane: engineStats({}, [peer]),
      counts: { ...newLeaseCounts(), ...times, refusals: { overlap: 1 }, notices },
      store: { description: 'memory', ok: true, tableOf: new Date() },
    }),
    firewall: firewallStats,
    host: hostState,
  };
  const store = { requests: 1, requestErrors: 0, requestSecondsTotal: 1, resyncs: 0, reconnects: 0, skippedEvents: 0 };
  const metrics = createMetrics({
    version: 'test',
    overlay: () => overlay,
    store: () => ({ ...store, keepAlives: 1 }),
    operations: { renew: { done: 1, failed: 0, seconds: 1 } },
    ready: () => true,
  });
  families = parseExposition((await metrics.handler()).body);
});

interface Panel {
  readonly id: number;
  readonly type: string;
  readonly title: string;
  readonly datasource?: { readonly uid: string };
  readonly gridPos: { readonly x: number; readonly y: number; readonly w: number; readonly h: number };
  readonly targets?: readonly { readonly expr: string; readonly legendFormat: string }[];
}

const dashboard = JSON.parse(readFileSync(`${root}/deploy/grafana-dashboard.json`, 'utf8')) as {
  readonly panels: readonly Panel[];
  readonly templating: { readonly list: readonly { readonly query: string | { readonly query: string } }[] };
};
const alerts = readFileSync(`${root}/deploy/prometheus-alerts.yaml`, 'utf8');

const dashboardQueries = [
  ...dashboard.panels.flatMap(({ targets = [] }) => targets.map(({ expr }) => expr)),
  ...dashboard.templating.list.map(({ query }) => (typeof query === 'string' ? query : query.query)),
];
const alertQueries = Array.from(alerts.matchAll(/^ +expr: (?:>-\n +)?(.+)$/gm), ([, expr = '']) => expr);

/** Metric names of a query, each with its label matchers. */
function selectors(query: string): { name: string; matchers: [string, string, string][] }[] {
  return Array.from(
    query.matchAll(/\b((?:podwire|process|nodejs)_\w+)(?:\{([^}]*)\})?/g),
    ([, name = '', text = '']) => ({
      name,
      matchers: Array.from(text.matchAll(/(\w+)(=~|!=|!~|=)"([^"]*)"/g), ([, label = '', how = '', value = '']) => [
        label,
        how,
        value,
      ]),
    }),
  );
}

/** Labels that Prometheus adds to what it scrapes. */
const SCRAPED = ['instance', 'job'];

function valuesOf(family: MetricFamily, label: string): string[] {
  return Array.from(family.samples.keys()).flatMap((key) => new RegExp(`[{,]${label}="([^"]*)"`).exec(key)?.[1] ?? []);
}

function faults(query: string): string[] {
  const found: string[] = [];
  for (const { name, matchers } of selectors(query)) {
    const family = families.get(name.replace(/_(bucket|sum|count)$/, '')) ?? families.get(name);
    if (family === undefined) {
      found.push(`${name} does not exist`);
      continue;
    }
    if (family.samples.size === 0) found.push(`${name} has no sample in this test`);
    for (const [label, , value] of matchers) {
      if (SCRAPED.includes(label)) continue;
      const known = valuesOf(family, label);
      if (known.length === 0) found.push(`${name} has no label ${label}`);
      for (const one of value.split('|')) if (!known.includes(one)) found.push(`${name}: ${label} is never ${one}`);
    }
    const isCounter = family.type === 'counter';
    const inRate = new RegExp(`(rate|increase)\\(${name}(\\{[^}]*\\})?\\[`).test(query);
    if (!query.startsWith('label_values') && isCounter !== inRate) found.push(`${name} is a ${family.type}: ${query}`);
  }
  return found;
}

test('every query of the dashboard asks for metrics and labels that exist', () => {
  expect(dashboardQueries.length).toBeGreaterThan(40);
  expect(dashboardQueries.flatMap(faults)).toEqual([]);
});

test('and so does every alert', () => {
  expect(alertQueries).toHaveLength(alerts.match(/- alert:/g)!.length);
  expect(alertQueries.every((query) => selectors(query).length > 0)).toBe(true);
  expect(alertQueries.flatMap(faults)).toEqual([]);
});

test('a query that asks for something else is found', () => {
  expect(faults('podwire_nonsense_total')).toHaveLength(1);
  expect(faults('rate(podwire_drops_total{cause="no_route"}[5m])')).not.toEqual([]);
  expect(faults('rate(podwire_drops_total{reason="no_rout"}[5m])')).toHaveLength(1);
  expect(faults('podwire_drops_total{reason="no_route"}')).toHaveLength(1);
  expect(faults('rate(podwire_ready[5m])')).toHaveLength(1);
});

test('legends name labels that the query leaves', () => {
  for (const { targets = [] } of dashboard.panels) {
    for (const { expr, legendFormat } of targets) {
      const kept = /by \(([^)]*)\)/.exec(expr)?.[1]?.split(/, */);
      for (const [, label = ''] of legendFormat.matchAll(/\{\{(\w+)\}\}/g)) {
        if (kept !== undefined) expect(kept, expr).toContain(label);
      }
    }
  }
});

test('panels have numbers of their own and do not lie on each other', () => {
  const { panels } = dashboard;
  expect(new Set(panels.map(({ id }) => id)).size).toBe(panels.length);
  for (const [i, { gridPos: a, type, datasource }] of panels.entries()) {
    expect(a.x + a.w).toBeLessThanOrEqual(24);
    if (type !== 'row') expect(datasource?.uid).toBe('${datasource}');
    for (const { gridPos: b, title } of panels.slice(i + 1)) {
      const apart = a.x + a.w <= b.x || b.x + b.w <= a.x || a.y + a.h <= b.y || b.y + b.h <= a.y;
      expect(apart, `${panels[i]!.title} and ${title}`).toBe(true);
    }
  }
});
