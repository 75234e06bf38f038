import { chmod, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { DUAL_PLAN, FIREWALL_NEEDS, iptablesRules, nftRules, PLAN, RemoteFirewall } from '../support/firewall.js';
import type { FirewallNotice } from '../../src/host/firewall/firewall.js';
import { NetNs } from '../support/netns.js';
import { Process, until } from '../support/process.js';
import { missing } from '../support/requires.js';

const NFT = 'ip podwire-default';
const MASQ = '-m comment --comment "flanneld masq" -j FLANNEL-POSTRTG';

describe.skipIf(missing(FIREWALL_NEEDS))('firewall rules that somebody changes', () => {
  let host: NetNs;
  let directory: string;

  beforeAll(async () => {
    directory = await mkdtemp(join(tmpdir(), 'pwru-'));
  });
  afterAll(() => rm(directory, { recursive: true }));

  const fresh = async (): Promise<NetNs> => {
    host = await NetNs.create('ru', 'host');
    return host;
  };
  afterEach(async () => host?.[Symbol.asyncDispose]());
  const sh = (script: string): Promise<string> => host.ok('sh', ['-ec', script]);

  it.each([
    ['the ruleset flushed', 'nft flush ruleset', `nft table ${NFT} was gone; nft table ip6 podwire-default was gone`],
    ['a table deleted', `nft delete table ${NFT}`, `nft table ${NFT} was gone`],
    ['a table of IPv6 deleted', 'nft delete table ip6 podwire-default', 'nft table ip6 podwire-default was gone'],
    ['a chain flushed', `nft flush chain ${NFT} postrouting`, `nft table ${NFT} was changed`],
    ['a rule added', `nft add rule ${NFT} forward drop`, `nft table ${NFT} was changed`],
    ['a rule put in front', `nft insert rule ${NFT} postrouting accept`, `nft table ${NFT} was changed`],
    ['a policy changed', `nft 'chain ${NFT} forward { policy drop; }'`, `nft table ${NFT} was changed`],
    ['the table put to sleep', `nft 'table ${NFT} { flags dormant; }'`, `nft table ${NFT} was changed`],
    [
      'a rule replaced by itself',
      `nft -a list chain ${NFT} forward | sed -n 's/.*daddr.*handle \\([0-9]*\\)$/replace rule ${NFT} forward handle \\1 ip daddr 10.42.0.0\\/16 accept/p' | nft -f -`,
      `nft table ${NFT} was changed`,
    ],
  ])('%s: put back at once (nft)', async (_, command, what) => {
    await fresh();
    await using firewall = await RemoteFirewall.start(host, {}, DUAL_PLAN);
    const before = await nftRules(host);
    await sh(command);
    await until(async () => (await firewall.stats()).repairs === 1, { what: 'a repair' });
    expect(await nftRules(host)).toBe(before);
    expect(firewall.notices.at(-1)).toMatchObject({
      level: 'warn',
      text: 'somebody changed the firewall rules, they are put back',
      fields: { what },
    });
    expect(await firewall.stats()).toMatchObject({ state: 'ok', failures: 0 });
  });

  const iptablesDamage: readonly (readonly [string, string, RegExp])[] = [
    ['the nat table flushed', 'IPT -t nat -F', /jump from POSTROUTING to FLANNEL-POSTRTG was gone/],
    ['a rule deleted', 'IPT -t nat -D FLANNEL-POSTRTG 3', /chain FLANNEL-POSTRTG was changed/],
    [
      'two rules in another order',
      `printf '%s\\n' '*filter' '-D FLANNEL-FWD 1' '-A FLANNEL-FWD -s 10.42.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT' COMMIT | IPT-restore --noflush`,
      /chain FLANNEL-FWD was in another order/,
    ],
    [
      'a rule there twice',
      'IPT -A FLANNEL-FWD -s 10.42.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT',
      /chain FLANNEL-FWD was changed/,
    ],
    ['the jump deleted', `IPT -t nat -D POSTROUTING ${MASQ}`, /jump from POSTROUTING to FLANNEL-POSTRTG was gone/],
    [
      'the jump there twice',
      `IPT -t nat -A POSTROUTING ${MASQ}`,
      /jump from POSTROUTING to FLANNEL-POSTRTG was there 2 times/,
    ],
    [
      'a drop in front of the jump',
      'IPT -I FORWARD -j DROP',
      /jump from FORWARD to FLANNEL-FWD was behind a rule that drops/,
    ],
  ];

  describe.each([
    ['iptables-nft', {}],
    // The legacy tables have no events.
    ['iptables-legacy', { resyncMs: 150 }],
  ] as const)('%s', (command, options) => {
    it.each(iptablesDamage)('%s: put back', async (_, damage, what) => {
      await fresh();
      if (command === 'iptables-legacy') await sh('iptables-legacy -N SOMEBODY; iptables-legacy -A SOMEBODY -j RETURN');
      await using firewall = await RemoteFirewall.start(host, { manager: 'iptables', ...options });
      expect((await firewall.stats()).manager).toBe(command);
      // The jump's place among the chains' own lines does not matter, the order in our chains does.
      const rules = async (): Promise<string[]> => {
        const all = await iptablesRules(host, command);
        const inOurs = all.filter((rule) => rule.includes('-A FLANNEL'));
        return [...inOurs, ...all.filter((rule) => !rule.includes('-A FLANNEL')).sort()];
      };
      const before = await rules();
      await sh(damage.replaceAll('IPT', command));
      // What the damage does in several steps may be repaired in several.
      const isWell = async (): Promise<boolean> =>
        (await firewall.stats()).repairs > 0 && isDeepStrictEqual(await rules(), before);
      await until(isWell, { what: 'a repair' });
      expect(firewall.notices.map(({ fields }) => String(fields['what'])).join('; ')).toMatch(what);
    });
  });

  it('is slower with one who does not stop, and says so once', async () => {
    await fresh();
    await using firewall = await RemoteFirewall.start(host);
    await using enemy = host.spawn('sh', ['-c', `while :; do nft delete table ${NFT} 2>/dev/null; sleep 0.02; done`]);
    const said = (): number => firewall.notices.filter(({ text }) => text.startsWith('somebody keeps changing')).length;
    await until(() => said() > 0, { what: 'a word about the fight', timeoutMs: 20_000 });
    const { repairs } = await firewall.stats();
    await until(async () => (await firewall.stats()).repairs > repairs, { what: 'a repair', timeoutMs: 20_000 });
    await enemy.stop('SIGKILL');
    await until(async () => (await nftRules(host)).includes(NFT), { what: 'the rules' });
    expect(said()).toBe(1);
  });

  it('hears again after nft monitor was killed, and what happened meanwhile', async () => {
    await fresh();
    await using firewall = await RemoteFirewall.start(host);
    const monitors = async (): Promise<string> =>
      sh(
        `for p in $(ip netns pids ${host.name}); do tr '\\0' ' ' </proc/$p/cmdline | sed -n "s/^nft monitor.*/$p/p"; done`,
      );
    const pid = Number(await monitors());
    expect(pid).toBeGreaterThan(0);
    process.kill(pid, 'SIGKILL');
    await until(async () => (await firewall.stats()).watch === 'periodic', { what: 'the loss to be seen' });
    expect(firewall.notices.at(-1)?.text).toMatch(/^the kernel's firewall events are lost/);
    await sh('nft flush ruleset');
    await until(async () => (await firewall.stats()).repairs === 1, { what: 'a repair' });
    expect(await firewall.stats()).toMatchObject({ watch: 'events', state: 'ok' });
    expect(Number(await monitors())).not.toBe(pid);
    expect(firewall.notices.map(({ text }) => text)).toContain("the kernel's firewall events are heard again");
    // Whoever kills us leaves nothing behind.
    await firewall.process.stop('SIGKILL');
    await until(
      async () => (await host.run('ip', ['netns', 'pids', host.name])).stdout.trim().split('\n').length <= 1,
      {
        what: 'nft monitor to end with us',
      },
    );
    expect(await monitors()).toBe('');
  });

  it('says once when there are no events at all, and checks from time to time', async () => {
    await fresh();
    const bin = await mkdtemp(join(directory, 'bin-'));
    const script = '#!/bin/sh\n[ "$1" = monitor ] && { echo "no events here" >&2; exit 1; }\nexec /usr/sbin/nft "$@"\n';
    await writeFile(join(bin, 'nft'), script);
    await chmod(join(bin, 'nft'), 0o755);
    const environment = { PATH: `${bin}:${process.env['PATH'] ?? ''}` };
    await using firewall = await RemoteFirewall.open(host, { resyncMs: 200 }, environment);
    expect(await firewall.apply(PLAN)).toBe(true);
    const said = (): FirewallNotice[] => firewall.notices.filter(({ text }) => text.includes('events'));
    await until(() => said().length > 0, { what: 'a word' });
    expect(said()).toMatchObject([{ level: 'warn', fields: { reason: 'no events here' } }]);
    await sh('nft flush ruleset');
    await until(async () => (await firewall.stats()).repairs === 1, { what: 'a repair' });
    expect(await firewall.stats()).toMatchObject({ watch: 'periodic', state: 'ok', resyncMs: 200 });
    expect(said()).toHaveLength(1);
  });

  it('tries again until nft works, visibly', async () => {
    await fresh();
    const bin = await mkdtemp(join(directory, 'bin-'));
    const script = `#!/bin/sh\nif [ -e ${bin}/broken ] && [ "$1" = -a ]; then echo 'Error: it is broken' >&2; exit 1; fi\nexec /usr/sbin/nft "$@"\n`;
    await writeFile(join(bin, 'nft'), script);
    await chmod(join(bin, 'nft'), 0o755);
    await writeFile(join(bin, 'broken'), '');
    await using firewall = await RemoteFirewall.open(host, {}, { PATH: `${bin}:${process.env['PATH'] ?? ''}` });
    expect(await firewall.apply(PLAN)).toBe(false);
    expect(await firewall.stats()).toMatchObject({
      manager: 'nft',
      state: 'failing',
      lastError: expect.stringMatching(/^nft -a -f -: Error: it is broken/) as string,
    });
    await until(async () => (await firewall.stats()).failures >= 2, { what: 'another try' });
    expect(firewall.notices.filter(({ level }) => level === 'error')).toHaveLength(1);
    await rm(join(bin, 'broken'));
    await until(async () => (await firewall.stats()).state === 'ok', { what: 'the rules' });
    expect(await nftRules(host)).toContain('masquerade fully-random');
    expect(firewall.notices.at(-1)?.text).toBe('firewall rules are in place');
  });

  it('waits for who holds the lock of iptables, and reads without it', async () => {
    await fresh();
    const lock = join(directory, 'xtables.lock');
    const environment = { XTABLES_LOCKFILE: lock };
    await sh('iptables-legacy -N SOMEBODY; iptables-legacy -A SOMEBODY -j RETURN');
    await writeFile(lock, '');
    const hold = async (): Promise<Process> => {
      const holder = new Process('sh', ['-ec', 'exec 9<>"$0"; flock 9; echo held; exec sleep 100', lock]);
      await holder.output(/held/);
      return holder;
    };
    const holder = await hold();
    await using firewall = await RemoteFirewall.open(host, { manager: 'iptables', resyncMs: 100 }, environment);
    const applied = firewall.apply(PLAN);
    applied.catch(() => undefined);
    const waits = async (): Promise<boolean> =>
      (
        await sh(`for p in $(ip netns pids ${host.name}); do tr '\\0' ' ' </proc/$p/cmdline || :; done 2>/dev/null`)
      ).includes('--wait=');
    await until(waits, { what: 'iptables-restore to wait' });
    expect(await iptablesRules(host, 'iptables-legacy')).toEqual([]);
    await holder.stop('SIGKILL');
    expect(await applied).toBe(true);
    expect(await iptablesRules(host, 'iptables-legacy')).not.toEqual([]);
    const again = await hold();
    const { checks } = await firewall.stats();
    await until(async () => (await firewall.stats()).checks >= checks + 5, { what: 'checks while it is held' });
    expect(await firewall.stats()).toMatchObject({ state: 'ok', failures: 0, repairs: 0 });
    await again.stop('SIGKILL');
  });

  it('does without any firewall program, and says what is off', async () => {
    await fresh();
    // ip netns exec has a mount namespace of its own.
    const hide = 'for f in nft xtables-nft-multi xtables-legacy-multi; do mount --bind /dev/null /usr/sbin/$f; done';
    await using firewall = await RemoteFirewall.open(host, {}, {}, ['sh', '-ec', `${hide}; exec "$@"`, 'sh']);
    expect(firewall.notices).toEqual([
      {
        level: 'error',
        text: 'nft does not work (nft is not installed) and iptables is not installed: no masquerading and no forward rules by podwire (install nftables or iptables, or give --firewall none)',
        fields: {},
      },
    ]);
    expect(await firewall.apply(PLAN)).toBe(true);
    expect(await firewall.stats()).toMatchObject({ manager: 'none', state: 'off', watch: 'off', masquerade: false });
  });
});
