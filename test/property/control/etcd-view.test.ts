import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { ManualClock } from '../../../src/control/clock.js';
import { EtcdKeys } from '../../../src/control/stores/etcd/keys.js';
import type { KeyValue, ResponseHeader } from '../../../src/control/stores/etcd/protocol.js';
import { EtcdView } from '../../../src/control/stores/etcd/view.js';

const NAMES = ['10.42.1.0-24', '10.42.2.0-24', '10.42.3.0-24', 'junk'];
const keys = new EtcdKeys('/p');

type Change = { readonly name: string; readonly deletes: boolean };
/** What happens at the client: the next event arrives, a list is asked for, the answer of a pending list arrives. */
type Step = { readonly what: 'event' | 'ask' | 'answer'; readonly choice: number };

/** etcd as a history: the state at every revision. */
class History {
  readonly states: ReadonlyMap<string, KeyValue>[] = [new Map()];
  readonly events: { readonly type: 'PUT' | 'DELETE'; readonly kv: KeyValue }[] = [];

  constructor(changes: readonly Change[]) {
    for (const { name, deletes } of changes) {
      const before = this.states.at(-1)!;
      if (deletes && !before.has(name)) continue;
      const revision = this.states.length;
      const state = new Map(before);
      const kv: KeyValue = {
        key: keys.keyOf(name),
        create_revision: String(revision),
        mod_revision: String(revision),
        value: Buffer.from(deletes ? '' : `{"PublicIP":"192.0.2.${revision}"}`),
        lease: '0',
      };
      if (deletes) state.delete(name);
      else state.set(name, kv);
      this.states.push(state);
      this.events.push({ type: deletes ? 'DELETE' : 'PUT', kv });
    }
  }

  get last(): number {
    return this.states.length - 1;
  }

  header(revision: number, cluster = '1'): ResponseHeader {
    return { cluster_id: cluster, revision: String(revision) };
  }

  list(revision: number): KeyValue[] {
    return [...this.states[revision]!.values()];
  }
}

function open(): { view: EtcdView; clock: ManualClock; notices: string[] } {
  const clock = new ManualClock();
  const notices: string[] = [];
  const onNotice = ({ kind }: { readonly kind: string }): void => void notices.push(kind);
  return { view: new EtcdView({ keys, clock, onNotice, description: 'etcd' }), clock, notices };
}

/** What the view shows: the PublicIP, which is the revision, of every lease. */
function shown(view: EtcdView): Record<string, string | undefined> {
  return Object.fromEntries(
    view.table
      .names()
      .toSorted()
      .map((name) => [name, view.table.get(name)?.lease?.attributes.publicIp.toString()]),
  );
}

function truth(history: History, revision: number): Record<string, string | undefined> {
  const leases = [...history.states[revision]!].filter(([name]) => name !== 'junk');
  leases.sort(([one], [other]) => (one < other ? -1 : 1));
  return Object.fromEntries(leases.map(([name, kv]) => [name, `192.0.2.${kv.mod_revision}`]));
}

describe('the view of etcd', () => {
  const change = fc.record({ name: fc.constantFrom(...NAMES), deletes: fc.boolean() });
  const step = fc.record({
    what: fc.constantFrom<Step['what']>('event', 'event', 'ask', 'answer'),
    choice: fc.nat(),
  });

  it('is right in the end, and never goes back, in whatever order answers arrive', () => {
    fc.assert(
      fc.property(fc.array(change, { maxLength: 60 }), fc.array(step, { maxLength: 120 }), (changes, steps) => {
        const history = new History(changes);
        const { view, notices } = open();
        const lists: { since: number; revision: number }[] = [];
        const seen = new Map<string, number>();
        let nextEvent = 0;
        const check = (): void => {
          for (const name of NAMES) {
            const revision = view.stateOf(name)?.modRevision ?? 0;
            if (revision === 0) continue;
            expect(revision).toBeGreaterThanOrEqual(seen.get(name) ?? 0);
            seen.set(name, revision);
          }
        };
        const deliver = (): void => {
          const { type, kv } = history.events[nextEvent++]!;
          if (type === 'PUT') view.put(kv);
          else view.delete(keys.nameOf(kv.key), Number(kv.mod_revision));
        };
        for (const { what, choice } of steps) {
          if (what === 'event' && nextEvent < history.events.length) deliver();
          if (what === 'ask') {
            // Linearizable: not older than anything seen before it was asked for.
            const since = view.revision;
            lists.push({ since, revision: since + (choice % (history.last - since + 1)) });
          }
          const list = what === 'answer' ? lists.splice(choice % Math.max(1, lists.length), 1)[0] : undefined;
          if (list) view.replace(history.header(list.revision), history.list(list.revision), list.since);
          check();
        }
        while (nextEvent < history.events.length) deliver();
        expect(shown(view)).toEqual(truth(history, history.last));
        expect(notices.filter((kind) => kind === 'degraded')).toEqual([]);
      }),
      { numRuns: 500 },
    );
  });

  it('takes any bytes for key and value', () => {
    const bytes = fc.uint8Array({ maxLength: 40 }).map((each) => Buffer.from(each));
    const text = fc
      .constantFrom('10.42.1.0-24', '10.42.1.0-24&fd00::-64', '/x', 'x10.42.3.0-24', '', '-', '&')
      .map((name) => Buffer.from(name));
    const key = fc.tuple(fc.constantFrom('/p/subnets', '/p/subnets/', '/p/subnets-old/'), fc.oneof(bytes, text));
    const value = fc.oneof(
      bytes,
      fc.json().map((each) => Buffer.from(each)),
    );
    fc.assert(
      fc.property(
        fc.array(fc.tuple(key, value, fc.bigInt({ min: 0n, max: 2n ** 63n - 1n })), { maxLength: 20 }),
        (kvs) => {
          const { view } = open();
          kvs.forEach(([[start, end], content, lease], i) => {
            const revision = String(i + 1);
            const kv = { key: Buffer.concat([Buffer.from(start), end]), value: content, lease: String(lease) };
            view.put({ ...kv, mod_revision: revision, create_revision: revision });
          });
          // Whatever is no lease by its name is no entry; an entry without a lease was skipped and counted.
          const broken = view.table.names().filter((name) => view.table.get(name)?.lease === undefined);
          expect(view.skipped).toBeGreaterThanOrEqual(broken.length);
          expect(view.table.names().every((name) => /^[0-9.]+-\d+(&[0-9a-f:]+-\d+)?$/.test(name))).toBe(true);
          view.replace({ cluster_id: '1', revision: String(kvs.length) }, [], kvs.length);
          expect(view.table.names()).toEqual([]);
        },
      ),
      { numRuns: 500 },
    );
  });

  it.each([
    ['another cluster', '2', 9],
    ['the same, restored', '1', 3],
  ])('keeps what is missing from %s for a minute', async (_what, cluster, revision) => {
    const { view, clock, notices } = open();
    const [a, b] = NAMES as [string, string];
    const before = new History([a, b, a, a, a].map((name) => ({ name, deletes: false })));
    view.replace(before.header(5), before.list(5), 0);
    const after = new History([{ name: a, deletes: false }]);
    view.replace(after.header(revision, cluster), after.list(1), 5);
    expect(shown(view)).toEqual({ [a]: '192.0.2.1', [b]: '192.0.2.2' });
    expect(notices).toEqual(['degraded']);
    await clock.advance(61_000);
    view.replace(after.header(revision, cluster), after.list(1), view.revision);
    expect(shown(view)).toEqual({ [a]: '192.0.2.1' });
  });
});
