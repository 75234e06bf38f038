import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { iptablesAdmission, nftAdmission } from '../../../src/host/firewall/admission.js';
import {
  chainEdits,
  type IptablesChain,
  isFinal,
  isForeignRule,
  type OwnChain,
  parseSave,
  prefixesOf,
} from '../../../src/host/firewall/iptables.js';
import { Prefix } from '../../../src/net/prefix.js';

/** What `iptables-restore --noflush` does with the lines that podwire writes; a wrong line throws, as it fails there. */
function restore(table: ReadonlyMap<string, IptablesChain>, lines: readonly string[]): Map<string, IptablesChain> {
  const after = new Map(Array.from(table, ([name, { policy, rules }]) => [name, { policy, rules: [...rules] }]));
  const chain = (name: string): { rules: string[] } => {
    const found = after.get(name);
    if (found === undefined) throw new Error(`no chain ${name}`);
    return found;
  };
  const targets = (): string[] =>
    [...after.values()].flatMap(({ rules }) => rules.map((rule) => rule.split('-j ')[1] ?? ''));
  for (const line of lines) {
    const [verb = '', name = '', ...rest] = line.split(' ');
    if (verb.startsWith(':')) {
      const found = after.get(verb.slice(1));
      after.set(verb.slice(1), { policy: found?.policy, rules: [] });
    } else if (verb === '-A') {
      chain(name).rules.push(rest.join(' '));
    } else if (verb === '-I') {
      const [position = '', ...rule] = rest;
      const index = Number(position) - 1;
      if (!(index >= 0 && index <= chain(name).rules.length)) throw new Error(`no position ${position}`);
      chain(name).rules.splice(index, 0, rule.join(' '));
    } else if (verb === '-D') {
      const index = chain(name).rules.indexOf(rest.join(' '));
      if (index < 0) throw new Error(`no rule for ${line}`);
      chain(name).rules.splice(index, 1);
    } else if (verb === '-X') {
      if (chain(name).rules.length > 0 || targets().includes(name)) throw new Error(`${name} is in use`);
      after.delete(name);
    } else {
      throw new Error(`unknown line ${line}`);
    }
  }
  return after;
}

const COMMENT = 'flanneld forward';
const OURS = [
  `-s 10.42.0.0/16 -m comment --comment "${COMMENT}" -j ACCEPT`,
  `-d 10.42.0.0/16 -m comment --comment "${COMMENT}" -j ACCEPT`,
];
const FOREIGN = [
  '-s 10.99.0.0/16 -j ACCEPT',
  '-s 10.99.1.0/24 -d 10.99.0.0/16 -j RETURN',
  '-s 10.99.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE',
];
const JUMP = `-m comment --comment "${COMMENT}" -j FLANNEL-FWD`;
const isForeign = (rule: string): boolean => isForeignRule(rule, [Prefix.parse('10.42.0.0/16')]);

const ownRule = fc.constantFrom(
  ...OURS,
  ...FOREIGN,
  '-s 10.42.7.0/24 -j RETURN',
  '-m mark --mark 0x4000/0x4000 -j RETURN',
  '-j LOG',
);
const hookRule = fc.constantFrom(
  JUMP,
  JUMP,
  '-j FLANNEL-FWD',
  '-j DROP',
  '-j REJECT --reject-with icmp-port-unreachable',
  '-i eth0 -j DROP',
  '-j DOCKER-USER',
  '-o lo -j ACCEPT',
);

const table = fc
  .record({
    hook: fc.array(hookRule, { maxLength: 6 }),
    own: fc.option(fc.array(ownRule, { maxLength: 8 }), { nil: undefined }),
  })
  .map(({ hook, own }) => {
    // Where there is no chain there is no jump to it.
    const rules = own === undefined ? hook.filter((rule) => !rule.endsWith('FLANNEL-FWD')) : hook;
    return new Map<string, IptablesChain>([
      ['FORWARD', { policy: 'ACCEPT', rules }],
      ['DOCKER-USER', { policy: undefined, rules: ['-j RETURN'] }],
      ...(own === undefined ? [] : [['FLANNEL-FWD', { policy: undefined, rules: own }] as const]),
    ]);
  });

const own = (rules: readonly string[]): OwnChain => ({
  table: 'filter',
  hook: 'FORWARD',
  name: 'FLANNEL-FWD',
  comment: COMMENT,
  rules,
  isForeign,
});

describe('chainEdits, for any table', () => {
  test('our rules stand first and in order, the foreign ones behind them, and the way to them is open', () => {
    fc.assert(
      fc.property(table, (before) => {
        const { lines, faults } = chainEdits(before, own(OURS));
        expect(faults.length > 0).toBe(lines.length > 0);
        const after = restore(before, lines);
        const foreign = (before.get('FLANNEL-FWD')?.rules ?? []).filter(isForeign);
        expect(after.get('FLANNEL-FWD')?.rules).toEqual([...OURS, ...foreign]);
        const hook = after.get('FORWARD')?.rules ?? [];
        expect(hook.filter((rule) => rule.endsWith('-j FLANNEL-FWD'))).toEqual([JUMP]);
        const drop = hook.findIndex((rule) => isFinal(rule, ['DROP', 'REJECT']));
        if (drop >= 0) expect(hook.indexOf(JUMP)).toBeLessThan(drop);
        const others = (rules: readonly string[] = []): string[] =>
          rules.filter((rule) => !rule.endsWith('FLANNEL-FWD'));
        expect(others(hook)).toEqual(others(before.get('FORWARD')?.rules));
        expect(after.get('DOCKER-USER')).toEqual(before.get('DOCKER-USER'));
        expect(chainEdits(after, own(OURS))).toEqual({ lines: [], faults: [] });
      }),
    );
  });

  test('without rules of ours, only what is foreign stays, and its jump as long as there is any', () => {
    fc.assert(
      fc.property(table, (before) => {
        const after = restore(before, chainEdits(before, own([])).lines);
        const rules = before.get('FLANNEL-FWD')?.rules ?? [];
        const hook = (map: ReadonlyMap<string, IptablesChain>): readonly string[] => map.get('FORWARD')?.rules ?? [];
        if (rules.some(isForeign)) {
          const left = after.get('FLANNEL-FWD')?.rules ?? [];
          expect(left).toEqual(rules.filter((rule) => isForeign(rule) || prefixesOf(rule).length === 0));
          expect(hook(after)).toEqual(hook(before));
        } else {
          expect(after.has('FLANNEL-FWD')).toBe(false);
          expect(hook(after)).toEqual(hook(before).filter((rule) => !rule.endsWith('FLANNEL-FWD')));
        }
        expect(chainEdits(after, own([])).lines).toEqual([]);
      }),
    );
  });
});

describe('iptablesAdmission, for any table', () => {
  const mark = '-m comment --comment "podwire forward x"';
  const wanted = [`-s 10.42.0.0/16 ${mark} -j ACCEPT`, `-d 10.42.0.0/16 ${mark} -j ACCEPT`];
  const rule = fc.constantFrom(
    ...wanted,
    `-s 10.41.0.0/16 ${mark} -j ACCEPT`,
    '-s 10.42.0.0/16 -m comment --comment "podwire forward y" -j ACCEPT',
    '-j DROP',
    '-j RETURN',
    '-m comment --comment "the end" -j REJECT --reject-with icmp-host-prohibited',
    '-i eth0 -j DROP',
    '-j LOG --log-prefix "x "',
  );
  const filter = fc
    .record({
      policy: fc.constantFrom('ACCEPT', 'DROP'),
      forward: fc.array(fc.oneof(rule, fc.constant('-j DOCKER-USER')), { maxLength: 6 }),
      docker: fc.option(fc.array(rule, { maxLength: 5 }), { nil: undefined }),
    })
    .map(
      ({ policy, forward, docker }) =>
        new Map<string, IptablesChain>([
          [
            'FORWARD',
            { policy, rules: docker === undefined ? forward.filter((text) => text !== '-j DOCKER-USER') : forward },
          ],
          ...(docker === undefined ? [] : [['DOCKER-USER', { policy: undefined, rules: docker }] as const]),
        ]),
    );

  test('a chain that drops has our accepts before its end, once; any other has none; the rest is as it was', () => {
    fc.assert(
      fc.property(filter, (before) => {
        const matches = ['-s 10.42.0.0/16', '-d 10.42.0.0/16'];
        const { target, lines } = iptablesAdmission(before, matches, 'podwire forward x');
        const after = restore(before, lines);
        const rules = (name: string): readonly string[] => after.get(name)?.rules ?? [];
        const drops = (before.get('FORWARD')?.rules ?? []).some((text) => isFinal(text, ['DROP', 'REJECT']));
        expect(target !== undefined).toBe(drops || before.get('FORWARD')?.policy === 'DROP');
        for (const [name, { rules: all }] of after) {
          const ours = all.filter((text) => text.includes(mark));
          expect([...ours].sort()).toEqual(name === target ? [...wanted].sort() : []);
          const others = all.filter((text) => !text.includes(mark));
          expect(others).toEqual(before.get(name)?.rules.filter((text) => !text.includes(mark)));
        }
        if (target !== undefined) {
          const end = rules(target).findIndex((text) => isFinal(text, ['DROP', 'REJECT', 'RETURN']));
          for (const text of wanted) if (end >= 0) expect(rules(target).indexOf(text)).toBeLessThan(end);
        }
        expect(iptablesAdmission(after, matches, 'podwire forward x').lines).toEqual([]);
      }),
    );
  });
});

describe('nftAdmission', () => {
  const chain = { family: 'inet', table: 't', name: 'c', type: 'filter', hook: 'forward' };
  const rules = (...texts: string[]): { text: string; handle: number }[] =>
    texts.map((text, i) => ({ text, handle: i + 3 }));
  const accept = 'ip saddr 10.42.0.0/16 accept comment "podwire forward x"';
  const commands = (policy: string, ...texts: string[]): string[] =>
    nftAdmission({ ...chain, policy }, rules(...texts), ['ip saddr 10.42.0.0/16'], 'podwire forward x');

  test.each([
    ['nothing drops', 'accept', ['ct state invalid drop'], []],
    ['a policy', 'drop', [], [`add rule inet t c ${accept}\n`]],
    ['a policy, already there', 'drop', [accept], []],
    ['nothing drops any more', 'accept', [accept], ['delete rule inet t c handle 3\n']],
    [
      'a final drop',
      'accept',
      ['ct state established accept', 'drop'],
      [`insert rule inet t c position 4 ${accept}\n`],
    ],
    [
      'behind the drop',
      'accept',
      ['counter packets 5 bytes 300 drop', accept],
      ['delete rule inet t c handle 4\n', `insert rule inet t c position 3 ${accept}\n`],
    ],
    [
      'twice',
      'drop',
      [accept, accept],
      ['delete rule inet t c handle 3\n', 'delete rule inet t c handle 4\n', `add rule inet t c ${accept}\n`],
    ],
    [
      'of another agent',
      'drop',
      ['ip saddr 10.42.0.0/16 accept comment "podwire forward y"'],
      [`add rule inet t c ${accept}\n`],
    ],
    [
      'a logged reject',
      'accept',
      ['log prefix "drop " level info reject with icmpx admin-prohibited comment "the end"'],
      [`insert rule inet t c position 3 ${accept}\n`],
    ],
    ['before a jump or a return', 'drop', ['jump more', 'return'], [`insert rule inet t c position 4 ${accept}\n`]],
  ])('%s', (_, policy, texts, expected) => {
    expect(commands(policy, ...texts)).toEqual(expected);
  });
});

test('parseSave reads counters, quoted comments and chains without rules', () => {
  const text = [
    '# Generated by iptables-save',
    '*nat',
    ':POSTROUTING ACCEPT [12:720]',
    ':EMPTY - [0:0]',
    '[3:180] -A POSTROUTING -m comment --comment "a -A b" -j EMPTY',
    '-A POSTROUTING ! -s 10.0.0.0/8 -j MASQUERADE --random-fully ',
    'COMMIT',
  ].join('\n');
  expect([...parseSave(text)]).toEqual([
    [
      'POSTROUTING',
      {
        policy: 'ACCEPT',
        rules: ['-m comment --comment "a -A b" -j EMPTY', '! -s 10.0.0.0/8 -j MASQUERADE --random-fully'],
      },
    ],
    ['EMPTY', { policy: undefined, rules: [] }],
  ]);
});
