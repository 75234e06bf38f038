/**
 * A strict reader of Prometheus' text format 0.0.4, for tests: what it takes, any scraper takes. See the format's
 * documentation at prometheus.io, "Exposition formats".
 */

export interface MetricFamily {
  readonly name: string;
  readonly help: string;
  readonly type: string;
  /** Value by labels, `{direction="egress",peer="192.0.2.1"}` in order of their names, the name in front for suffixes. */
  readonly samples: ReadonlyMap<string, number>;
}

const NAME = /^[a-zA-Z_:][a-zA-Z0-9_:]*$/;
const LABEL = /^([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\n"])*)"(,|$)/;
const SUFFIXES: Readonly<Record<string, readonly string[]>> = {
  counter: [''],
  gauge: [''],
  histogram: ['_bucket', '_sum', '_count'],
  summary: ['', '_sum', '_count'],
};

/** @throws Error with the line that breaks a rule of the format. */
export function parseExposition(text: string): ReadonlyMap<string, MetricFamily> {
  const families = new Map<string, { name: string; help: string; type: string; samples: Map<string, number> }>();
  let current: { name: string; help: string; type: string; samples: Map<string, number> } | undefined;
  if (!text.endsWith('\n')) throw new Error('the last line has no end');
  for (const line of text.slice(0, -1).split('\n')) {
    const wrong = (why: string): Error => new Error(`${why}: ${line}`);
    if (line === '') continue;
    const comment = /^# (HELP|TYPE) (\S+) (.*)$/.exec(line);
    if (comment !== null) {
      const [, kind, name = '', rest = ''] = comment;
      if (!NAME.test(name)) throw wrong('not a metric name');
      if (kind === 'HELP') {
        if (families.has(name)) throw wrong('a second HELP');
        if (/\\(?![\\n])/.test(rest)) throw wrong('a wrong escape');
        current = { name, help: rest, type: 'untyped', samples: new Map() };
        families.set(name, current);
        continue;
      }
      if (current?.name !== name || current.type !== 'untyped' || current.samples.size > 0)
        throw wrong('TYPE out of place');
      if (!(rest in SUFFIXES)) throw wrong('no such type');
      current.type = rest;
      continue;
    }
    if (line.startsWith('#')) throw wrong('a comment that is neither HELP nor TYPE');
    const sample = /^([^\s{]+)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (sample === null) throw wrong('no sample');
    const [, name = '', labels, value = ''] = sample;
    if (
      current === undefined ||
      !(SUFFIXES[current.type] ?? []).some((suffix) => name === `${current?.name}${suffix}`)
    ) {
      throw wrong('a sample outside of its family');
    }
    const key = `${name === current.name ? '' : name.slice(current.name.length)}{${readLabels(labels ?? '', wrong).join(',')}}`;
    if (current.samples.has(key)) throw wrong('the same sample twice');
    const number = /^[+-]?Inf$/.test(value) ? Number(`${value.startsWith('-') ? '-' : ''}Infinity`) : Number(value);
    if (Number.isNaN(number) && value.toLowerCase() !== 'nan') throw wrong('no number');
    if (current.type === 'counter' && !(number >= 0)) throw wrong('a counter below zero');
    current.samples.set(key, number);
  }
  return families;
}

function readLabels(text: string, wrong: (why: string) => Error): string[] {
  const found: string[] = [];
  for (let rest = text; rest !== '';) {
    const match = LABEL.exec(rest);
    if (match === null) throw wrong('not a label');
    const [whole, name = '', value = ''] = match;
    if (name.startsWith('__')) throw wrong('a reserved label');
    if (found.some((one) => one.startsWith(`${name}=`))) throw wrong('the same label twice');
    found.push(`${name}="${value}"`);
    rest = rest.slice(whole.length);
  }
  const nameOf = (label: string): string => label.slice(0, label.indexOf('='));
  return found.sort((a, b) => (nameOf(a) < nameOf(b) ? -1 : 1));
}

/** One sample; `labels` as `peer="192.0.2.1"` with commas between, in order of their names. */
export function sampleOf(families: ReadonlyMap<string, MetricFamily>, name: string, labels = ''): number | undefined {
  return families.get(name)?.samples.get(`{${labels}}`);
}
