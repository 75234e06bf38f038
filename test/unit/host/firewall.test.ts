import { mkdir, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Runner } from '../../../src/host/exec.js';
import { HostFirewall, type FirewallNotice } from '../../../src/host/firewall/firewall.js';
import { firewallKey, firewallNames, networkKey } from '../../../src/host/firewall/names.js';
import { NftManager, parseChains, renderTable } from '../../../src/host/firewall/nft.js';
import type { FirewallPlan } from '../../../src/host/firewall/plan.js';
import { readPreviousNetworks } from '../../../src/host/firewall/previous.js';
import { chooseManager, findTools, type FirewallTools, type Flavour } from '../../../src/host/firewall/tools.js';
import { Prefix } from '../../../src/net/prefix.js';
import { commandFailed } from './fake-ip.js';

describe('names', () => {
  let directory: string;
  beforeAll(async () => {
    directory = await mkdtemp(join(tmpdir(), 'pwru-'));
    await mkdir(join(directory, 'run'));
    await symlink('run', join(directory, 'varrun'));
  });
  afterAll(() => rm(directory, { recursive: true }));

  test("flannel's subnet file has flannel's chains", async () => {
    expect(await firewallKey('/run/flannel/subnet.env')).toBe('default');
    expect(await firewallKey('/run/flannel/../flannel//subnet.env')).toBe('default');
    expect(firewallNames('default')).toEqual({
      key: 'default',
      table: 'podwire-default',
      chains: { masquerade: 'FLANNEL-POSTRTG', forward: 'FLANNEL-FWD' },
      shared: true,
      admission: 'podwire forward default',
    });
  });

  test('a symbolic link makes no difference, also above what does not exist yet', async () => {
    for (const rest of ['subnet.env', 'new/sub dir/subnet.env']) {
      expect(await firewallKey(join(directory, 'varrun', rest))).toBe(await firewallKey(join(directory, 'run', rest)));
    }
  });

  test('other files have other names, which nft and iptables take', async () => {
    const paths = ['subnet.env', 'subnet2.env', 'a/subnet.env', 'a very long name for a subnet file.env', 'ü"$(x).env'];
    const keys = await Promise.all([
      ...paths.map((path) => firewallKey(join(directory, path))),
      firewallKey('/x/subnet.env'),
    ]);
    const names = [...keys, networkKey([Prefix.parse('10.42.0.0/16')])].map(firewallNames);
    for (const part of ['table', 'admission'] as const) {
      expect(new Set(names.map((name) => name[part])).size).toBe(names.length);
    }
    expect(new Set(names.map(({ chains }) => chains.masquerade)).size).toBe(names.length);
    for (const { table, chains, shared } of names) {
      expect(table).toMatch(/^podwire-[A-Za-z0-9_-]{1,20}$/);
      expect(chains.masquerade).toMatch(/^FLANNEL-POSTRTG-[0-9a-f]{8}$/);
      // XT_EXTENSION_MAXNAMELEN 29 with the final zero.
      expect(chains.masquerade.length).toBeLessThanOrEqual(28);
      expect(shared).toBe(false);
    }
  });
});

const tools = (nft: boolean, ...flavours: Flavour[]): FirewallTools => ({
  nft: nft ? { usable: true, randomFully: true } : { usable: false, reason: 'nft is not installed' },
  iptables: flavours.flatMap((flavour) =>
    ([4, 6] as const).map((family) => ({ flavour, family, command: '', save: '', restore: '', modern: true })),
  ),
});

describe('the manager', () => {
  test.each([
    ['auto', false, tools(true, 'nft'), false, { manager: 'nft', why: 'nft works here' }],
    ['auto', true, tools(true, 'nft'), false, { manager: 'nft', why: 'EnableNFTables in the network config' }],
    ['auto', false, tools(true), true, { manager: 'nft', why: 'nft works here' }],
    [
      'auto',
      false,
      tools(false, 'legacy'),
      false,
      {
        manager: 'iptables',
        flavour: 'legacy',
        why: "nft does not work (nft is not installed); the flavour of the host's iptables",
      },
    ],
    [
      'auto',
      false,
      tools(false, 'nft', 'legacy'),
      true,
      {
        manager: 'iptables',
        flavour: 'legacy',
        why: "nft does not work (nft is not installed); the host's rules are in the legacy tables",
      },
    ],
    [
      'auto',
      true,
      tools(false, 'nft'),
      false,
      {
        manager: 'iptables',
        flavour: 'nft',
        problem: expect.stringMatching(/^EnableNFTables is set, but nft does not work/) as string,
      },
    ],
    [
      'auto',
      false,
      tools(false),
      false,
      {
        manager: 'none',
        problem: expect.stringMatching(
          /^nft does not work \(nft is not installed\) and iptables is not installed: no masq/,
        ) as string,
      },
    ],
    ['nft', false, tools(true, 'nft'), false, { manager: 'nft', why: 'asked for' }],
    [
      'nft',
      false,
      tools(false, 'nft'),
      false,
      {
        manager: 'none',
        problem: expect.stringMatching(
          /^--firewall nft, but nft does not work \(nft is not installed\): no masquerading/,
        ) as string,
      },
    ],
    ['iptables', true, tools(true, 'nft', 'legacy'), false, { manager: 'iptables', flavour: 'nft' }],
    ['iptables', false, tools(true, 'nft'), true, { manager: 'iptables', flavour: 'nft' }],
    [
      'iptables',
      false,
      tools(true),
      false,
      {
        manager: 'none',
        problem: expect.stringMatching(/^--firewall iptables, but iptables is not installed/) as string,
      },
    ],
    ['none', true, tools(true, 'nft'), false, { manager: 'none', why: 'asked for' }],
  ] as const)('%s, EnableNFTables %s: case %#', (requested, configAsksNft, found, legacyInUse, expected) => {
    expect(chooseManager(requested, configAsksNft, found, legacyInUse)).toMatchObject(expected);
  });
});

describe('findTools', () => {
  const host = (programs: Readonly<Record<string, string>>): Promise<FirewallTools> => {
    const runner: Runner = async (command, args, options) => {
      const answer = programs[command] ?? '';
      if (command !== 'nft') return answer;
      if (answer !== '' && !(answer === 'no random' && options?.input?.includes('fully-random') !== true)) {
        throw commandFailed(`nft ${args.join(' ')}: ${answer}`);
      }
      return '';
    };
    // As an installation without multi-call programs.
    const isThere = (name: string): boolean => programs[name.replace(/-(save|restore)$/, '')] !== undefined;
    return findTools(runner, { findProgram: async (name) => (isThere(name) ? `/sbin/${name}` : undefined) });
  };
  const summary = (found: FirewallTools): string[] =>
    found.iptables.map(({ command, flavour, modern }) => `${command} ${flavour}${modern ? '' : ' old'}`);

  test.each([
    [{ iptables: 'iptables v1.8.9 (nf_tables)' }, ['iptables nft']],
    [{ iptables: 'iptables v1.8.7 (legacy)' }, ['iptables legacy']],
    [{ iptables: 'iptables v1.6.1' }, ['iptables legacy old']],
    [{ iptables: 'iptables v1.6.2' }, ['iptables legacy']],
    [{ iptables: 'iptables v1.10.0-rc1 (nf_tables)' }, ['iptables nft']],
    [
      {
        iptables: 'iptables v1.8.9 (legacy)',
        'iptables-nft': 'iptables v1.8.9 (nf_tables)',
        'iptables-legacy': 'iptables v1.8.9 (legacy)',
      },
      ['iptables-legacy legacy', 'iptables-nft nft'],
    ],
    [{ 'iptables-nft': 'iptables v1.8.9 (nf_tables)' }, ['iptables-nft nft']],
    [{ iptables: 'sh: syntax error' }, []],
    [{}, []],
  ])('iptables: %j', async (programs, expected) => {
    expect(summary(await host(programs as Record<string, string>))).toEqual(expected);
  });

  test('the two multi-call programs say what they are by their names', async () => {
    const multi = { nft: 'xtables-nft-multi', legacy: 'xtables-legacy-multi' } as const;
    const found = await findTools(async () => '', {
      findProgram: async (name) => {
        if (!name.startsWith('ip')) return undefined;
        return `/usr/sbin/${multi[name.includes('-nft') ? 'nft' : 'legacy']}`;
      },
    });
    expect(summary(found)).toEqual([
      'iptables-legacy legacy',
      'iptables-nft nft',
      'ip6tables-legacy legacy',
      'ip6tables-nft nft',
    ]);
  });

  test.each([
    [{ nft: '' }, { usable: true, randomFully: true }],
    [{ nft: 'no random' }, { usable: true, randomFully: false }],
    [{ nft: 'Operation not supported' }, { usable: false, reason: 'nft -c -f -: Operation not supported' }],
    [{}, { usable: false, reason: 'nft is not installed' }],
  ])('nft: %j', async (programs, expected) => {
    expect((await host(programs as Record<string, string>)).nft).toEqual(expected);
  });
});

test('a host without any program: one line, nothing is run, nothing fails', async () => {
  const notices: FirewallNotice[] = [];
  const runner: Runner = async (command, args) => {
    // The routes of an earlier run are looked for all the same.
    if (command === 'ip') return '[]';
    throw new Error(`unexpected: ${command} ${args.join(' ')}`);
  };
  const firewall = await HostFirewall.open({
    manager: 'auto',
    key: 'default',
    runner,
    findProgram: async () => undefined,
    onNotice: (notice) => notices.push(notice),
  });
  expect(notices.map(({ level }) => level)).toEqual(['error']);
  const plan = { masquerade: true, forward: true, randomFully: true, blackhole: false };
  expect(
    await firewall.apply({
      ...plan,
      networks: [Prefix.parse('10.42.0.0/16')],
      subnets: [Prefix.parse('10.42.1.0/24')],
    }),
  ).toBe(true);
  expect(firewall.stats()).toMatchObject({ manager: 'none', state: 'off', rules: [], watch: 'off', failures: 0 });
  await firewall.close();
  expect(notices).toHaveLength(1);
});

describe('a plan is in force', () => {
  const plan: FirewallPlan = {
    networks: [Prefix.parse('10.42.0.0/16')],
    subnets: [Prefix.parse('10.42.1.0/24')],
    masquerade: true,
    forward: true,
    randomFully: true,
  };

  async function ensure(answer: (script: string) => Promise<string>): Promise<string[]> {
    const order: string[] = [];
    let written = '';
    const runner: Runner = async (_, args, { input = '' } = {}) => {
      order.push(`${args.join(' ')}: ${input.split(' ', 2).join(' ')}`);
      if (!input.startsWith('list')) written = input;
      const listed = written.replaceAll(/^.* comment ".*$/gm, (rule) => `\t\t${rule.trim()} # handle 7`);
      return (await answer(input)) || (input.startsWith('list') ? listed : '');
    };
    const manager = new NftManager(runner, firewallNames('default'));
    const given = manager.ensure(plan, { tables: new Set() }, () => order.push('in force'));
    await given.catch((error: unknown) => order.push(String(error)));
    return order;
  }

  test('once it is written, before the kernel is asked how it lists it', async () => {
    expect(await ensure(async () => '')).toEqual(['-a -f -: add table', 'in force', '-a -f -: list table']);
  });

  test('not when it could not be written', async () => {
    const order = await ensure(() => Promise.reject(commandFailed('nft: no')));
    expect(order).toEqual(['-a -f -: add table', expect.stringContaining('nft: no')]);
  });

  test('also when somebody undoes it at once, which is told', async () => {
    const order = await ensure(async (script) => (script.startsWith('list') ? ' ' : ''));
    expect(order.slice(0, 3)).toEqual(['-a -f -: add table', 'in force', '-a -f -: list table']);
    expect(order.at(-1)).toMatch(/somebody else writes them too/);
  });
});

test('parseChains reads what nft of any age prints', () => {
  const listing = [
    'table ip filter {',
    '\tchain FORWARD { # handle 2',
    '\t\ttype filter hook forward priority 0; policy drop;',
    '\t}',
    '\tchain KUBE-FORWARD {',
    '\t}',
    '}',
    'table inet firewalld {',
    '\tcomment "x"',
    '\tchain filter_FORWARD {',
    '\t\ttype filter hook forward priority filter + 10; policy accept;',
    '\t}',
    '}',
    'table netdev n {',
    '\tchain in {',
    '\t\ttype filter hook ingress device "eth0" priority -500; policy accept;',
    '\t}',
    '}',
    'table ip6 empty {',
    '}',
    '',
  ].join('\n');
  expect([...parseChains(listing).tables]).toEqual(['ip filter', 'inet firewalld', 'netdev n', 'ip6 empty']);
  expect(parseChains(listing).chains).toEqual([
    { family: 'ip', table: 'filter', name: 'FORWARD', type: 'filter', hook: 'forward', policy: 'drop' },
    { family: 'ip', table: 'filter', name: 'KUBE-FORWARD' },
    { family: 'inet', table: 'firewalld', name: 'filter_FORWARD', type: 'filter', hook: 'forward', policy: 'accept' },
    { family: 'netdev', table: 'n', name: 'in', type: 'filter', hook: 'ingress', policy: 'accept' },
  ]);
});

test('a table holds only what is asked for, and a family only what it has', () => {
  const names = firewallNames('default');
  const plan = {
    networks: [Prefix.parse('10.42.0.0/16'), Prefix.parse('fd42::/48')],
    subnets: [Prefix.parse('10.42.1.0/24')],
    masquerade: true,
    forward: false,
    randomFully: false,
  };
  expect(renderTable(names, plan, 6)).toBe('');
  const four = renderTable(names, plan, 4);
  expect(four).not.toMatch(/fully-random|chain forward/);
  expect(four.split('\n').filter((line) => line.includes('masquerade'))).toEqual([
    'ip saddr 10.42.0.0/16 ip daddr != 224.0.0.0/4 masquerade comment "podwire masq"',
    'ip saddr != 10.42.0.0/16 ip daddr 10.42.0.0/16 masquerade comment "podwire masq"',
  ]);
  expect(renderTable(names, { ...plan, forward: true }, 6)).toMatch(/ip6 saddr fd42::\/48 accept/);
  expect(renderTable(names, { ...plan, masquerade: false }, 4)).toBe('');
});

test('the networks of an earlier run come from the subnet file', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'pwru-'));
  try {
    const path = join(directory, 'subnet.env');
    expect(await readPreviousNetworks(path)).toEqual([]);
    await writeFile(
      path,
      'FLANNEL_NETWORK=10.42.0.0/16,nonsense\nFLANNEL_IPV6_NETWORK=fd42::/48\nFLANNEL_SUBNET=10.42.1.1/24\n',
    );
    expect((await readPreviousNetworks(path)).join(' ')).toBe('10.42.0.0/16 fd42::/48');
  } finally {
    await rm(directory, { recursive: true });
  }
});
