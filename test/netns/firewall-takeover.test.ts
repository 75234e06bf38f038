import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import {
  DUAL_PLAN,
  FIREWALL_NEEDS,
  iptablesRules,
  legacyTables,
  nftRules,
  PLAN,
  RemoteFirewall,
} from '../support/firewall.js';
import { NetNs } from '../support/netns.js';
import { missing } from '../support/requires.js';

/** What flanneld leaves with iptables (contract 8). */
const flanneld = (network: string, subnet: string, chains = true): string =>
  [
    '*nat',
    ...(chains
      ? [':FLANNEL-POSTRTG - [0:0]', '-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG']
      : []),
    '-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN',
    `-A FLANNEL-POSTRTG -s ${subnet} -d ${network} -m comment --comment "flanneld masq" -j RETURN`,
    `-A FLANNEL-POSTRTG -s ${network} -d ${subnet} -m comment --comment "flanneld masq" -j RETURN`,
    `-A FLANNEL-POSTRTG ! -s ${network} -d ${subnet} -m comment --comment "flanneld masq" -j RETURN`,
    `-A FLANNEL-POSTRTG -s ${network} ! -d ${network.includes(':') ? 'ff00::/8' : '224.0.0.0/4'} -m comment --comment "flanneld masq" -j MASQUERADE --random-fully`,
    `-A FLANNEL-POSTRTG ! -s ${network} -d ${network} -m comment --comment "flanneld masq" -j MASQUERADE --random-fully`,
    'COMMIT',
    '*filter',
    ...(chains ? [':FLANNEL-FWD - [0:0]', '-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD'] : []),
    `-A FLANNEL-FWD -s ${network} -m comment --comment "flanneld forward" -j ACCEPT`,
    `-A FLANNEL-FWD -d ${network} -m comment --comment "flanneld forward" -j ACCEPT`,
    'COMMIT',
    '',
  ].join('\n');

/** And with nft: both tables, whatever the network has. */
const flanneldNft = (network: string, subnet: string): string => `
table ip flannel-ipv4 {
	comment "rules for flannel-ipv4"
	chain forward {
		type filter hook forward priority filter; policy accept;
		ip saddr ${network} accept
		ip daddr ${network} accept
	}
	chain postrtg {
		type nat hook postrouting priority srcnat; policy accept;
		meta mark 0x00004000 return
		ip saddr ${subnet} ip daddr ${network} return
		ip saddr ${network} ip daddr != 224.0.0.0/4 masquerade fully-random
	}
}
table ip6 flannel-ipv6 {
	chain forward {
		type filter hook forward priority filter; policy accept;
	}
}
`;

describe.skipIf(missing(FIREWALL_NEEDS))('firewall rules of others and of earlier runs', () => {
  let host: NetNs;

  beforeEach(async () => {
    host = await NetNs.create('ru', 'host');
  });
  afterEach(async () => host[Symbol.asyncDispose]());

  const feed = (command: string, input: string): Promise<string> =>
    host.ok('sh', ['-ec', `${command} <<'END'\n${input}\nEND`]);
  /** The legacy flavour is chosen where somebody else's rules are in the legacy tables. */
  const preferLegacy = (): Promise<string> =>
    host.ok('sh', ['-ec', 'iptables-legacy -N SOMEBODY; iptables-legacy -A SOMEBODY -j RETURN']);
  const all = async (): Promise<string[]> => {
    const found: string[] = [];
    for (const command of ['iptables-nft', 'ip6tables-nft']) found.push(...(await iptablesRules(host, command)));
    if ((await legacyTables(host)) !== '') {
      for (const command of ['iptables-legacy', 'ip6tables-legacy']) {
        found.push(...(await iptablesRules(host, command)));
      }
    }
    return [...found, ...((await nftRules(host)).match(/^table \S+ (podwire|flannel)\S*/gm) ?? [])];
  };
  const run = async (manager: 'nft' | 'iptables', options = {}, plan = DUAL_PLAN): Promise<RemoteFirewall> => {
    const firewall = await RemoteFirewall.open(host, { manager, ...options });
    expect(await firewall.apply(plan)).toBe(true);
    expect((await firewall.stats()).failures).toBe(0);
    return firewall;
  };

  it.each(['iptables-nft', 'iptables-legacy'])('nft to %s and back leaves nothing of the other', async (flavour) => {
    if (flavour === 'iptables-legacy') await preferLegacy();
    await using first = await run('nft');
    const withNft = await all();
    expect(withNft).toEqual(['table ip podwire-default', 'table ip6 podwire-default']);
    await first.close();
    await using second = await run('iptables');
    expect((await second.stats()).manager).toBe(flavour);
    const withIptables = await all();
    expect(withIptables.filter((line) => line.startsWith('table'))).toEqual([]);
    expect(withIptables).toHaveLength(24);
    expect(
      second.notices.filter(({ text }) => text.startsWith('removed')).map(({ fields }) => fields['rules']),
    ).toEqual(['nft table ip podwire-default', 'nft table ip6 podwire-default']);
    await second.close();
    await using third = await run('nft');
    expect(await all()).toEqual(withNft);
    expect(await third.stats()).toMatchObject({ repairs: 0, state: 'ok' });
  });

  it('iptables of one flavour after the other', async () => {
    await using first = await run('iptables');
    expect((await first.stats()).manager).toBe('iptables-nft');
    await first.close();
    await preferLegacy();
    await using second = await run('iptables');
    expect((await second.stats()).manager).toBe('iptables-legacy');
    expect(await iptablesRules(host, 'iptables-nft')).toEqual([]);
    expect(await iptablesRules(host, 'iptables-legacy')).toHaveLength(12);
  });

  describe.each(['iptables-nft', 'iptables-legacy'])("flanneld's rules in %s", (command) => {
    beforeEach(async () => {
      await feed(`${command}-restore --noflush`, flanneld('10.42.0.0/16', '10.42.7.0/24'));
    });

    it('go when nft takes over', async () => {
      await using firewall = await run('nft');
      expect(await all()).toEqual(['table ip podwire-default', 'table ip6 podwire-default']);
      expect(firewall.notices.map(({ level, text }) => `${level} ${text}`)).toEqual([
        'info removed firewall rules that our own replace',
        'info removed firewall rules that our own replace',
        'info firewall rules are in place',
      ]);
    });

    it("another flanneld's in the same chains stay, with the way to them", async () => {
      await feed(`${command}-restore --noflush`, flanneld('10.99.0.0/16', '10.99.3.0/24', false));
      await using firewall = await run('nft');
      const rules = await iptablesRules(host, command);
      expect(rules.filter((rule) => rule.includes('10.42.'))).toEqual([]);
      expect(rules.filter((rule) => rule.includes('10.99.'))).toHaveLength(7);
      expect(rules.filter((rule) => rule.includes('-j FLANNEL-'))).toHaveLength(2);
      expect((await firewall.stats()).state).toBe('ok');
    });
  });

  it("flanneld's rules are ours when they are the same: nothing is written", async () => {
    await feed('iptables-nft-restore --noflush', flanneld('10.42.0.0/16', '10.42.1.0/24'));
    const before = await host.ok('nft', ['-a', 'list', 'ruleset']);
    await using firewall = await run('iptables', {}, PLAN);
    expect((await firewall.stats()).manager).toBe('iptables-nft');
    expect(await host.ok('nft', ['-a', 'list', 'ruleset'])).toBe(before);
  });

  it("another daemon's rules in flannel's chains stand behind ours and are not touched", async () => {
    await feed('iptables-nft-restore --noflush', flanneld('10.99.0.0/16', '10.99.3.0/24'));
    await using firewall = await run('iptables', {}, PLAN);
    const masquerade = (await iptablesRules(host, 'iptables-nft')).filter((rule) =>
      rule.includes('-A FLANNEL-POSTRTG'),
    );
    expect(masquerade).toHaveLength(11);
    expect(masquerade.slice(1, 6).every((rule) => rule.includes('10.42.'))).toBe(true);
    expect(masquerade.slice(6).every((rule) => rule.includes('10.99.'))).toBe(true);
    // flanneld's own check finds what it looks for, and so do we.
    expect((await firewall.stats()).state).toBe('ok');
    await firewall.close();
    await using again = await run('iptables', {}, { ...PLAN, masquerade: false, forward: false });
    expect((await iptablesRules(host, 'iptables-nft')).filter((rule) => rule.includes('10.99.'))).toHaveLength(7);
    expect((await iptablesRules(host, 'iptables-nft')).filter((rule) => rule.includes('10.42.'))).toEqual([]);
    expect((await again.stats()).state).toBe('off');
  });

  it.each(['nft', 'iptables'] as const)("flanneld's nft tables go (%s)", async (manager) => {
    await feed('nft -f -', flanneldNft('10.42.0.0/16', '10.42.7.0/24'));
    await using firewall = await run(manager);
    expect((await all()).filter((line) => line.includes('flannel-ip'))).toEqual([]);
    expect((await firewall.stats()).state).toBe('ok');
  });

  it('the nft tables of a flanneld with another network stay', async () => {
    await feed('nft -f -', flanneldNft('10.99.0.0/16', '10.99.7.0/24'));
    await using firewall = await run('nft');
    expect(await all()).toEqual([
      'table ip flannel-ipv4',
      'table ip6 flannel-ipv6',
      'table ip podwire-default',
      'table ip6 podwire-default',
    ]);
    expect((await firewall.stats()).state).toBe('ok');
  });

  it('rules of an earlier run with another network and subnet go', async () => {
    await using first = await run('iptables', {}, { ...PLAN, networks: ['10.77.0.0/16'], subnets: ['10.77.5.0/24'] });
    await first.close();
    await using second = await run('iptables', { previousNetworks: ['10.77.0.0/16'] }, PLAN);
    expect((await iptablesRules(host, 'iptables-nft')).filter((rule) => rule.includes('10.77.'))).toEqual([]);
    expect(await iptablesRules(host, 'iptables-nft')).toHaveLength(12);
    await second.close();
    await using third = await run('nft', {}, { ...PLAN, networks: ['10.78.0.0/16'], subnets: ['10.78.5.0/24'] });
    await third.close();
    await using fourth = await run('nft', {}, PLAN);
    expect(await nftRules(host)).not.toContain('10.78.');
    expect([(await third.stats()).repairs, (await fourth.stats()).repairs]).toEqual([0, 0]);
  });

  it.each(['nft', 'iptables'] as const)('two agents on one host do not touch each other (%s)', async (manager) => {
    const other = { ...PLAN, networks: ['10.50.0.0/16'], subnets: ['10.50.1.0/24'] };
    await host.ok('iptables-nft', ['-P', 'FORWARD', 'DROP']);
    await host.ok('nft', ['add table inet other']);
    await host.ok('nft', ['add chain inet other f { type filter hook forward priority 0; policy drop; }']);
    await using first = await RemoteFirewall.start(host, { manager }, PLAN);
    await using second = await RemoteFirewall.start(host, { manager, key: 'second-1a2b3c4d' }, other);
    const both = await nftRules(host);
    for (const network of ['10.42.0.0/16', '10.50.0.0/16']) expect(both.split(network).length).toBeGreaterThan(8);
    expect(await second.apply({ ...other, masquerade: false, forward: false })).toBe(true);
    const one = await nftRules(host);
    expect(one).not.toMatch(/10\.50\.|second-1a2b3c4d|1a2b3c4d/);
    expect(one.split('10.42.0.0/16').length).toBe(both.split('10.42.0.0/16').length);
    expect(await first.stats()).toMatchObject({ repairs: 0, failures: 0, state: 'ok' });
    expect(await second.stats()).toMatchObject({ repairs: 0, failures: 0, state: 'off' });
  });
});
