import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import {
  DUAL_PLAN,
  FIREWALL_NEEDS,
  FirewallBed,
  iptablesRules,
  legacyTables,
  nftRules,
  PLAN,
  RemoteFirewall,
} from '../support/firewall.js';
import { NetNs } from '../support/netns.js';
import { until } from '../support/process.js';
import { missing } from '../support/requires.js';

const MANAGERS = [
  { manager: 'nft', expected: 'nft' },
  { manager: 'iptables', expected: 'iptables-nft' },
  { manager: 'iptables', expected: 'iptables-legacy' },
] as const;

/** Contract 8, as flanneld's own rules read in iptables-save. */
const GOLDEN = (network: string, subnet: string, multicast: string): string[] => [
  'filter :FLANNEL-FWD -',
  'filter -A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD',
  `filter -A FLANNEL-FWD -s ${network} -m comment --comment "flanneld forward" -j ACCEPT`,
  `filter -A FLANNEL-FWD -d ${network} -m comment --comment "flanneld forward" -j ACCEPT`,
  'nat :FLANNEL-POSTRTG -',
  'nat -A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG',
  'nat -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN',
  `nat -A FLANNEL-POSTRTG -s ${subnet} -d ${network} -m comment --comment "flanneld masq" -j RETURN`,
  `nat -A FLANNEL-POSTRTG -s ${network} -d ${subnet} -m comment --comment "flanneld masq" -j RETURN`,
  `nat -A FLANNEL-POSTRTG ! -s ${network} -d ${subnet} -m comment --comment "flanneld masq" -j RETURN`,
  `nat -A FLANNEL-POSTRTG -s ${network} ! -d ${multicast} -m comment --comment "flanneld masq" -j MASQUERADE --random-fully`,
  `nat -A FLANNEL-POSTRTG ! -s ${network} -d ${network} -m comment --comment "flanneld masq" -j MASQUERADE --random-fully`,
];

describe.skipIf(missing(FIREWALL_NEEDS))('firewall rules on the real kernel', () => {
  let bed: FirewallBed;

  beforeAll(async () => {
    bed = await FirewallBed.create();
  });
  afterEach(async () => bed.flush());
  afterAll(async () => bed?.[Symbol.asyncDispose]());

  /** The legacy flavour is chosen where somebody else's rules are in the legacy tables. */
  const prepare = async (expected: string): Promise<void> => {
    if (expected === 'iptables-legacy') await bed.host.ok('iptables-legacy', ['-N', 'SOMEBODY']);
    if (expected === 'iptables-legacy') await bed.host.ok('iptables-legacy', ['-A', 'FORWARD', '-j', 'SOMEBODY']);
  };

  describe.each(MANAGERS)('$expected', ({ manager, expected }) => {
    it('is what serves, and says so', async () => {
      await prepare(expected);
      await using firewall = await RemoteFirewall.start(bed.host, { manager }, DUAL_PLAN);
      expect(await firewall.stats()).toMatchObject({
        manager: expected,
        state: 'ok',
        masquerade: true,
        forward: true,
        watch: 'events',
        repairs: 0,
        failures: 0,
      });
      expect(firewall.notices).toMatchObject([{ level: 'info', text: 'firewall rules are in place' }]);
    });

    it("masquerades what leaves the pod network and keeps pods' addresses inside it", async () => {
      await prepare(expected);
      expect(await bed.seenAs(bed.pod, '192.0.2.2')).toBe('10.42.1.2');
      await using firewall = await RemoteFirewall.open(bed.host, { manager });
      expect(await firewall.apply(DUAL_PLAN)).toBe(true);
      const seen = {
        'pod to outside': await bed.seenAs(bed.pod, '192.0.2.2'),
        'pod to remote pod': await bed.seenAs(bed.pod, '10.42.2.2'),
        'remote pod to pod': await bed.seenAs(bed.remote, '10.42.1.2'),
        'outside to pod': await bed.seenAs(bed.outside, '10.42.1.2'),
        'outside to remote pod': await bed.seenAs(bed.outside, '10.42.2.2'),
      };
      expect(seen).toEqual({
        'pod to outside': '192.0.2.1',
        'pod to remote pod': '10.42.1.2',
        'remote pod to pod': '10.42.2.2',
        'outside to pod': '192.0.2.2',
        'outside to remote pod': '10.42.1.0',
      });
    });

    it('does the same for IPv6', async () => {
      await prepare(expected);
      await using firewall = await RemoteFirewall.open(bed.host, { manager });
      expect(await firewall.apply(DUAL_PLAN)).toBe(true);
      expect(await bed.seenAs(bed.pod, '2001:db8::2')).toBe('2001:db8::1');
      expect(await bed.seenAs(bed.pod, 'fd42:0:0:2::2')).toBe('fd42:0:0:1::2');
      expect(await bed.seenAs(bed.outside, 'fd42:0:0:1::2')).toBe('2001:db8::2');
      expect(await bed.seenAs(bed.outside, 'fd42:0:0:2::2')).toMatch(/^fd42:0:0:1::/);
    });

    it.each(['0x4000', '0x14001'])('leaves packets with mark %s alone', async (mark) => {
      await prepare(expected);
      await using firewall = await RemoteFirewall.open(bed.host, { manager });
      expect(await firewall.apply(PLAN)).toBe(true);
      await bed.host.ok('nft', ['add table ip marker']);
      await bed.host.ok('nft', ['add chain ip marker c { type filter hook prerouting priority 0; }']);
      await bed.host.ok('nft', [`add rule ip marker c iifname cni0 meta mark set ${mark}`]);
      expect(await bed.seenAs(bed.pod, '192.0.2.2')).toBe('10.42.1.2');
      await bed.host.ok('nft', ['replace rule ip marker c handle 2 iifname cni0 meta mark set 0x8000']);
      expect(await bed.seenAs(bed.pod, '192.0.2.2')).toBe('192.0.2.1');
    });

    it('changes nothing the second time', async () => {
      await prepare(expected);
      const rules = async (): Promise<readonly unknown[]> => [
        await iptablesRules(bed.host, expected === 'nft' ? 'iptables-nft' : expected),
        await nftRules(bed.host),
      ];
      const before = await (async () => {
        // One at a time: two that are alive would put back what the other writes.
        await using first = await RemoteFirewall.open(bed.host, { manager });
        await first.apply(DUAL_PLAN);
        return rules();
      })();
      await using second = await RemoteFirewall.start(bed.host, { manager }, DUAL_PLAN);
      expect(await second.stats()).toMatchObject({ state: 'ok', repairs: 0, failures: 0 });
      expect(await rules()).toEqual(before);
    });

    it('leaves the rules when it ends, and takes them away with a plan that has none', async () => {
      await prepare(expected);
      await using firewall = await RemoteFirewall.start(bed.host, { manager }, DUAL_PLAN);
      await firewall.close();
      expect(await bed.seenAs(bed.pod, '192.0.2.2')).toBe('192.0.2.1');
      await using again = await RemoteFirewall.open(bed.host, { manager });
      expect(await again.apply({ ...DUAL_PLAN, masquerade: false, forward: false })).toBe(true);
      expect((await again.stats()).state).toBe('off');
      expect(await bed.seenAs(bed.pod, '192.0.2.2')).toBe('10.42.1.2');
      expect(await nftRules(bed.host)).not.toMatch(/podwire|FLANNEL/);
      expect(await iptablesRules(bed.host, 'iptables-nft')).toEqual([]);
      if (expected === 'iptables-legacy') expect(await iptablesRules(bed.host, expected)).toEqual([]);
    });

    it('follows a new subnet', async () => {
      await prepare(expected);
      await using firewall = await RemoteFirewall.start(bed.host, { manager });
      expect(await firewall.apply({ ...PLAN, subnets: ['10.42.9.0/24'] })).toBe(true);
      const rules =
        expected === 'nft' ? await nftRules(bed.host) : (await iptablesRules(bed.host, expected)).join('\n');
      expect(rules).toContain('10.42.9.0/24');
      expect(rules).not.toContain('10.42.1.0/24');
      expect((await firewall.stats()).repairs).toBe(0);
    });
  });

  it.each(['iptables-nft', 'iptables-legacy'])("writes flannel's rules to the letter (%s)", async (expected) => {
    await prepare(expected);
    await using firewall = await RemoteFirewall.open(bed.host, { manager: 'iptables' });
    expect(await firewall.apply(DUAL_PLAN)).toBe(true);
    const sorted = (lines: string[]): string[] =>
      [...lines].sort((a, b) => Number(b.startsWith('filter')) - Number(a.startsWith('filter')));
    expect(sorted(await iptablesRules(bed.host, expected))).toEqual(
      GOLDEN('10.42.0.0/16', '10.42.1.0/24', '224.0.0.0/4'),
    );
    const six = expected.replace('iptables', 'ip6tables');
    expect(sorted(await iptablesRules(bed.host, six))).toEqual(GOLDEN('fd42::/48', 'fd42:0:0:1::/64', 'ff00::/8'));
  });

  it('writes the same rules as nft', async () => {
    await using firewall = await RemoteFirewall.open(bed.host);
    expect(await firewall.apply({ ...DUAL_PLAN, networks: ['10.42.0.0/16'], subnets: ['10.42.1.0/24'] })).toBe(true);
    expect(await nftRules(bed.host)).toBe(`table ip podwire-default {
	chain postrouting {
		type nat hook postrouting priority srcnat + 1; policy accept;
		meta mark & 0x00004000 == 0x00004000 return comment "podwire masq"
		ip saddr 10.42.1.0/24 ip daddr 10.42.0.0/16 return comment "podwire masq"
		ip saddr 10.42.0.0/16 ip daddr 10.42.1.0/24 return comment "podwire masq"
		ip saddr != 10.42.0.0/16 ip daddr 10.42.1.0/24 return comment "podwire masq"
		ip saddr 10.42.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random comment "podwire masq"
		ip saddr != 10.42.0.0/16 ip daddr 10.42.0.0/16 masquerade fully-random comment "podwire masq"
	}

	chain forward {
		type filter hook forward priority filter; policy accept;
		ip saddr 10.42.0.0/16 accept comment "podwire forward"
		ip daddr 10.42.0.0/16 accept comment "podwire forward"
	}
}
`);
  });

  it('makes no legacy tables where there are none', async () => {
    await using host = await NetNs.create('ru', 'new');
    await using firewall = await RemoteFirewall.start(host, {}, DUAL_PLAN);
    expect((await firewall.stats()).state).toBe('ok');
    expect(await legacyTables(host)).toBe('');
    await using iptables = await RemoteFirewall.start(host, { manager: 'iptables' }, DUAL_PLAN);
    expect((await iptables.stats()).manager).toBe('iptables-nft');
    expect(await legacyTables(host)).toBe('');
  });

  it('keeps the blackhole of the own subnet behind the bridge, and takes it away', async () => {
    await using firewall = await RemoteFirewall.open(bed.host, { resyncMs: 100 });
    expect(await firewall.apply({ ...DUAL_PLAN, masquerade: false, forward: false, blackhole: true })).toBe(true);
    const blackholes = async (): Promise<string> =>
      (await bed.host.ip('route', 'show', 'type', 'blackhole')) +
      (await bed.host.ip('-6', 'route', 'show', 'type', 'blackhole'));
    expect(await blackholes()).toMatch(
      /^blackhole 10\.42\.1\.0\/24 proto 111 metric 32768 \nblackhole fd42:0:0:1::\/64 /,
    );
    expect(await bed.pings(bed.remote, '10.42.1.2')).toBe(true);
    await bed.host.ip('route', 'del', 'blackhole', '10.42.1.0/24');
    await until(async () => (await blackholes()).includes('10.42.1.0/24'), { what: 'the blackhole to be back' });
    await until(() => firewall.notices.some(({ level }) => level === 'warn'), { what: 'a word about it' });
    await firewall.close();
    expect(await blackholes()).toBe('');
  });
});
