import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { DUAL_PLAN, FIREWALL_NEEDS, FirewallBed, nftRules, PLAN, RemoteFirewall } from '../support/firewall.js';
import { until } from '../support/process.js';
import { missing } from '../support/requires.js';

/** docker's way: its own chains before everything, DOCKER-USER for others, and a policy that drops. */
const docker = (ipt: string): string =>
  `${ipt} -N DOCKER-USER; ${ipt} -A DOCKER-USER -j RETURN; ${ipt} -N DOCKER-FORWARD; ` +
  `${ipt} -A FORWARD -j DOCKER-USER; ${ipt} -A FORWARD -j DOCKER-FORWARD; ${ipt} -P FORWARD DROP`;

/** One transaction: in between, the chain would drop nothing. */
const atomically = (ipt: string, ...lines: readonly string[]): string =>
  `printf '%s\\n' '*filter' ${lines.map((line) => `'${line}'`).join(' ')} COMMIT | ${ipt}-restore --noflush`;

const nftDrop = (family: string, body: string): string =>
  `nft -f - <<'END'\ntable ${family} other {\nchain for_ward {\ntype filter hook forward priority 10; ${body}\n}\n}\nEND`;

interface Drop {
  readonly name: string;
  /** Makes the host drop forwarded packets. */
  readonly drop: string;
  /** Takes our accepts out, as a reload of that firewall would. */
  readonly reload: string;
  /** Drops no longer. */
  readonly end: string;
  readonly place: string;
  /** Lists the chain that holds our accepts. */
  readonly show: string;
}

const DROPS: readonly Drop[] = [
  ...(['nft', 'legacy'] as const).flatMap((flavour) => {
    const ipt = `iptables-${flavour}`;
    return [
      {
        name: `policy DROP in ${ipt}`,
        drop: `${ipt} -P FORWARD DROP`,
        reload: `${ipt} -F FORWARD`,
        end: `${ipt} -P FORWARD ACCEPT`,
        place: `${ipt} FORWARD`,
        show: `${ipt} -S FORWARD`,
      },
      {
        name: `docker with ${ipt}`,
        drop: docker(ipt),
        reload: atomically(ipt, '-F DOCKER-USER', '-A DOCKER-USER -j RETURN'),
        end: `${ipt} -P FORWARD ACCEPT`,
        place: `${ipt} DOCKER-USER`,
        show: `${ipt} -S DOCKER-USER`,
      },
      {
        name: `REJECT at the end of ${ipt}`,
        drop: `${ipt} -A FORWARD -i lo -j ACCEPT; ${ipt} -A FORWARD -j REJECT --reject-with icmp-host-prohibited`,
        reload: atomically(ipt, '-F FORWARD', '-A FORWARD -j REJECT --reject-with icmp-host-prohibited'),
        end: `${ipt} -D FORWARD -j REJECT --reject-with icmp-host-prohibited`,
        place: `${ipt} FORWARD`,
        show: `${ipt} -S FORWARD`,
      },
    ];
  }),
  ...['ip', 'inet'].map((family) => ({
    name: `policy drop in an nft table of family ${family}`,
    drop: nftDrop(family, 'policy drop;'),
    reload: `nft flush chain ${family} other for_ward`,
    end: `nft 'chain ${family} other for_ward { policy accept; }'`,
    place: `nft ${family} other for_ward`,
    show: `nft list chain ${family} other for_ward`,
  })),
  {
    name: 'a final reject in an nft table',
    drop: nftDrop(
      'inet',
      'policy accept;\nct state invalid drop\ncounter log prefix "no " reject with icmpx admin-prohibited',
    ),
    reload: `nft 'flush chain inet other for_ward; add rule inet other for_ward drop'`,
    end: 'nft flush chain inet other for_ward',
    place: 'nft inet other for_ward',
    show: 'nft list chain inet other for_ward',
  },
];

describe.skipIf(missing(FIREWALL_NEEDS))('firewall rules beside another firewall', () => {
  let bed: FirewallBed;

  beforeAll(async () => {
    bed = await FirewallBed.create();
  });
  afterEach(async () => bed.flush());
  afterAll(async () => bed?.[Symbol.asyncDispose]());

  const sh = (script: string): Promise<string> => bed.host.ok('sh', ['-ec', script]);
  const forwards = (): Promise<boolean> => bed.pings(bed.pod, '10.42.2.2');
  /** A short wait, where no answer is what is expected. */
  const isDropped = async (): Promise<boolean> => !(await bed.pings(bed.pod, '10.42.2.2', 0.3));

  const some = DROPS.filter(({ name }) => /^(REJECT.*nft|docker.*legacy|.*family inet)$/.test(name));
  describe.each([
    { manager: 'nft', drops: DROPS },
    { manager: 'iptables', drops: some },
  ] as const)('manager $manager', ({ manager, drops }) => {
    it.each(drops)('$name', async ({ drop, reload, end, place, show }) => {
      await sh(drop);
      expect(await isDropped()).toBe(true);
      // The legacy tables have no events.
      const resyncMs = place.includes('legacy') ? 150 : 3_600_000;
      await using firewall = await RemoteFirewall.start(bed.host, { manager, resyncMs }, DUAL_PLAN);
      expect(await forwards()).toBe(true);
      const stats = await firewall.stats();
      expect(stats.state).toBe('ok');
      // In its own FORWARD chain the iptables manager has a jump, and needs no more.
      const own = manager === 'iptables' && place.startsWith(`${stats.manager} `);
      const accepts = async (): Promise<number> => (await sh(show)).split('podwire forward default').length - 1;
      expect(stats.admittedIn).toEqual(own ? [] : [place]);
      expect(await accepts()).toBe(own ? 0 : place.includes('inet') ? 4 : 2);

      await sh(reload);
      if (!own) {
        await until(async () => (await firewall.stats()).repairs > 0, { what: 'a repair' });
        expect(firewall.notices.find(({ level }) => level === 'warn')?.fields).toEqual({
          what: `our accepts in ${place} were gone or out of place`,
        });
      }
      await until(forwards, { what: 'a ping after the reload' });

      await sh(end);
      await until(async () => (await accepts()) === 0, { what: 'the accepts to go' });
      await until(async () => (await firewall.stats()).admittedIn.length === 0, { what: 'that to be seen' });
      expect((await firewall.stats()).failures).toBe(0);
    });
  });

  it.each(DROPS.filter(({ name }) => /docker|family inet/.test(name)))(
    '$name, started after the agent',
    async (other) => {
      const resyncMs = other.place.includes('legacy') ? 150 : 3_600_000;
      await using firewall = await RemoteFirewall.start(bed.host, { resyncMs });
      await sh(other.drop);
      await until(forwards, { what: 'a ping' });
      expect((await firewall.stats()).admittedIn).toEqual([other.place]);
      expect(firewall.notices.at(-1)).toEqual({
        level: 'info',
        text: "another firewall drops forwarded packets: the pods' are accepted there",
        fields: { chain: other.place },
      });
      expect((await firewall.stats()).repairs).toBe(0);
      // For others it drops as before.
      await bed.remote.ip('route', 'replace', '192.0.2.0/24', 'via', '10.42.1.0', 'dev', 'eth0', 'onlink');
      await bed.remote.ip('address', 'replace', '198.51.100.9/32', 'dev', 'lo');
      expect((await bed.remote.run('ping', ['-c', '1', '-W', '0.3', '-I', '198.51.100.9', '192.0.2.2'])).code).not.toBe(
        0,
      );
    },
  );

  it('puts the accepts before what ends the chain, and leaves a table that iptables can read', async () => {
    await sh(docker('iptables-nft'));
    await using firewall = await RemoteFirewall.start(bed.host);
    expect((await firewall.stats()).state).toBe('ok');
    expect((await sh('iptables-nft -S DOCKER-USER')).trim().split('\n')).toEqual([
      '-N DOCKER-USER',
      '-A DOCKER-USER -s 10.42.0.0/16 -m comment --comment "podwire forward default" -j ACCEPT',
      '-A DOCKER-USER -d 10.42.0.0/16 -m comment --comment "podwire forward default" -j ACCEPT',
      '-A DOCKER-USER -j RETURN',
    ]);
    await sh('iptables-nft -D DOCKER-USER 3; iptables-nft -I DOCKER-USER -j RETURN');
    await until(async () => (await firewall.stats()).repairs === 1, { what: 'a repair' });
    expect((await sh('iptables-nft -S DOCKER-USER')).trim().split('\n').at(-1)).toBe('-A DOCKER-USER -j RETURN');
  });

  it('without forward rules nothing is accepted for anybody', async () => {
    await sh('iptables-nft -P FORWARD DROP');
    await using firewall = await RemoteFirewall.start(bed.host, {}, { ...PLAN, forward: false });
    expect((await firewall.stats()).admittedIn).toEqual([]);
    expect(await isDropped()).toBe(true);
    expect(await nftRules(bed.host)).not.toContain('podwire forward');
  });

  it('IPv6: a policy of ip6tables', async () => {
    await sh('ip6tables-nft -P FORWARD DROP');
    expect(await bed.pings(bed.pod, 'fd42:0:0:2::2', 0.3)).toBe(false);
    await using firewall = await RemoteFirewall.start(bed.host, {}, DUAL_PLAN);
    expect((await firewall.stats()).admittedIn).toEqual(['ip6tables-nft FORWARD']);
    expect(await bed.pings(bed.pod, 'fd42:0:0:2::2')).toBe(true);
  });

  it('says what it may not change, and keeps its own rules', async () => {
    // A table with an owner: nobody else may write to it, as firewalld's.
    const owner = bed.host.spawn('nft', ['-i'], { stdio: ['pipe', 'pipe', 'pipe'] });
    try {
      owner.child.stdin?.write(
        'add table inet owned { flags owner; }\nadd chain inet owned f { type filter hook forward priority 0; policy drop; }\n',
      );
      await until(async () => (await nftRules(bed.host)).includes('policy drop'), { what: 'the owned table' });
      await using firewall = await RemoteFirewall.open(bed.host);
      expect(await firewall.apply(PLAN)).toBe(false);
      const { state, lastError } = await firewall.stats();
      expect(state).toBe('failing');
      expect(lastError).toMatch(/^cannot write to nft inet owned f: .*Operation not permitted/);
      expect(await nftRules(bed.host)).toContain('masquerade fully-random');
    } finally {
      await owner.stop('SIGKILL');
    }
  });
});
