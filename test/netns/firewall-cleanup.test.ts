import { rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { AGENT_NEEDS, AgentBed, statusOf, subnetBase } from '../support/agents.js';
import { FIREWALL_NEEDS, iptablesRules, legacyTables, nftRules } from '../support/firewall.js';
import { cli, type Finished, type Process, until } from '../support/process.js';
import { missing } from '../support/requires.js';

const NEEDS = { ...AGENT_NEEDS, commands: [...(AGENT_NEEDS.commands ?? []), ...(FIREWALL_NEEDS.commands ?? [])] };

describe.skipIf(missing(NEEDS))('the agent and its firewall, and podwire cleanup', () => {
  let bed: AgentBed;

  beforeAll(async () => {
    bed = await AgentBed.create();
  });
  afterAll(async () => bed?.[Symbol.asyncDispose]());
  beforeEach(async () => bed.reset());
  afterEach(async () => {
    await bed.killAll();
    await bed.a.ns.ok('sh', [
      '-c',
      'nft flush ruleset; iptables-legacy -P FORWARD ACCEPT; iptables-legacy -F; iptables-legacy -X',
    ]);
    await bed.a.ns.run('ip', ['link', 'del', 'dev', 'flannel.7']);
    await bed.a.ns.run('ip', ['route', 'flush', 'proto', '111']);
  });

  const cleanup = (...extra: readonly string[]): Promise<Finished> =>
    bed.a.ns.run(process.execPath, [cli, 'cleanup', `--subnet-file=${bed.a.subnetFile}`, ...extra]);
  const sh = (script: string): Promise<string> => bed.a.ns.ok('sh', ['-ec', script]);
  const rules = async (): Promise<string> =>
    [
      await nftRules(bed.a.ns),
      ...(await iptablesRules(bed.a.ns, 'iptables-nft')),
      ...((await legacyTables(bed.a.ns)) === '' ? [] : await iptablesRules(bed.a.ns, 'iptables-legacy')),
      await bed.a.ns.ip('route', 'show', 'proto', '111'),
    ].join('\n');
  const kill = async (agent: Process): Promise<void> => {
    await agent.stop('SIGKILL');
    await until(async () => !(await bed.a.ns.ip('-br', 'link')).includes('flannel0'), { what: 'the TUN to go' });
  };

  it('the agent puts its rules in place before the subnet file, and shows them', async () => {
    const agent = bed.start(bed.a, '--ip-masq', '--ip-blackhole-route', '--iptables-resync=60');
    await until(() => stat(bed.a.subnetFile).catch(() => undefined), { what: 'the subnet file' });
    const base = await subnetBase(bed.a);
    expect(await nftRules(bed.a.ns)).toContain(`ip saddr ${base}.0/24 ip daddr 10.42.0.0/16 return`);
    await agent.output(/"msg":"ready"/, { from: 'stderr' });
    expect(agent.stderr).toMatch(/"manager":"nft","why":"nft works here".*"msg":"firewall rules are in place"/);
    expect((await statusOf(bed.a)).firewall).toMatchObject({
      manager: 'nft',
      state: 'ok',
      masquerade: true,
      forward: true,
      resyncMs: 60_000,
    });
    const shown = await bed.a.ns.ok(process.execPath, [cli, 'status', `--subnet-file=${bed.a.subnetFile}`]);
    expect(shown).toMatch(/^firewall +nft +masquerade,? forward/m);
    expect(await bed.a.ns.ip('route', 'show', 'type', 'blackhole')).toContain(`blackhole ${base}.0/24 proto 111`);
    await until(async () => (await statusOf(bed.a)).firewall?.watch === 'events', { what: 'events' });
    await sh('nft flush ruleset');
    await until(async () => (await nftRules(bed.a.ns)).includes('masquerade'), { what: 'the rules to be back' });
    await agent.stop();
    expect(await nftRules(bed.a.ns)).toContain('masquerade');
    expect(await bed.a.ns.ip('route', 'show', 'proto', '111')).toBe('');
  });

  it('follows the agent to a new subnet, before the subnet file does', async () => {
    const agent = await bed.startReady(bed.a, '--ip-masq', '--ip-blackhole-route');
    const old = await subnetBase(bed.a);
    const thief = { PublicIP: '10.77.0.250', PublicIPv6: null, Owner: 'thief' };
    await writeFile(join(bed.store, 'subnets', `${old}.0-24`), JSON.stringify(thief));
    await until(async () => (await subnetBase(bed.a)) !== old, { what: 'a new subnet in the subnet file' });
    const base = await subnetBase(bed.a);
    const found = await nftRules(bed.a.ns);
    expect(found).toContain(`ip saddr ${base}.0/24 ip daddr 10.42.0.0/16 return`);
    expect(found).not.toContain(`${old}.0/24`);
    expect(await bed.a.ns.ip('route', 'show', 'type', 'blackhole')).toMatch(
      new RegExp(`^blackhole ${base.replaceAll('.', '\\.')}\\.0/24 proto 111 metric 32768 \\n$`),
    );
    expect((await statusOf(bed.a)).firewall).toMatchObject({ state: 'ok', repairs: 0, failures: 0 });
    expect(agent.running).toBe(true);
  });

  it('defaults: forward rules and no masquerading, as flanneld; none with --firewall none', async () => {
    const agent = await bed.startReady(bed.a);
    expect((await statusOf(bed.a)).firewall).toMatchObject({ masquerade: false, forward: true, state: 'ok' });
    expect(await nftRules(bed.a.ns)).not.toContain('masquerade');
    await agent.stop();
    await sh('nft flush ruleset');
    await bed.startReady(bed.a, '--firewall=none', '--ip-masq');
    expect((await statusOf(bed.a)).firewall).toMatchObject({ manager: 'none', state: 'off', masquerade: false });
    expect(await nftRules(bed.a.ns)).toBe('');
  });

  it('EnableNFTables and --firewall iptables', async () => {
    bed.store = await bed.makeStore('{"Network":"10.42.0.0/16","EnableNFTables":true,"Backend":{"Type":"udp"}}');
    const agent = await bed.startReady(bed.a);
    expect((await statusOf(bed.a)).firewall?.why).toBe('EnableNFTables in the network config');
    await agent.stop();
    await bed.startReady(bed.a, '--firewall=iptables', '--ip-masq');
    // Not flannel's subnet file: chains of its own.
    const found = await iptablesRules(bed.a.ns, 'iptables-nft');
    expect(found.filter((rule) => /^nat -A POSTROUTING .* -j FLANNEL-POSTRTG-[0-9a-f]{8}$/.test(rule))).toHaveLength(1);
    expect(await nftRules(bed.a.ns)).not.toContain('table ip podwire');
  });

  it('cleanup refuses while the agent lives, whatever its socket is called', async () => {
    const agent = await bed.startReady(bed.a, '--ip-masq');
    const before = await rules();
    expect(await cleanup()).toMatchObject({
      code: 1,
      stdout: '',
      stderr: `podwire: an agent is alive at ${join(bed.a.run, 'podwire-subnet.sock')}: stop it first, nothing was removed\n`,
    });
    await agent.stop();
    await bed.startReady(bed.a, '--ip-masq', `--control-socket=${bed.a.run}/other.sock`);
    expect(await cleanup()).toMatchObject({
      code: 1,
      stdout: '',
      stderr: expect.stringMatching(/^podwire: an agent is alive: flannel0 carries 10\.42\.0\.0\/16 /) as string,
    });
    expect(await rules()).toBe(before);
  });

  it('cleanup removes all that a killed agent left, says so, and is idempotent', async () => {
    await sh('iptables-legacy -P FORWARD DROP; iptables-nft -P FORWARD DROP');
    const agent = await bed.startReady(bed.a, '--ip-masq', '--ip-blackhole-route');
    const base = await subnetBase(bed.a);
    await kill(agent);
    // As other backends and an earlier manager leave them.
    await sh(
      `ip link add flannel.7 type vxlan id 7 dstport 8472 local 10.77.0.1 dev eth0; ip link set flannel.7 up; ` +
        `ip address add ${base}.0/32 dev flannel.7; ip route add 10.42.200.0/24 via 10.42.200.0 dev flannel.7 onlink proto 111`,
    );
    const before = await rules();
    const dry = await cleanup('--dry-run');
    expect(dry).toMatchObject({ code: 0, stderr: '' });
    expect(await rules()).toBe(before);
    const done = await cleanup();
    expect(done).toMatchObject({ code: 0, stderr: '' });
    expect(dry.stdout.replaceAll('would remove', 'removed')).toBe(done.stdout);
    const said = done.stdout.trim().split('\n');
    expect(said).toEqual(
      [
        expect.stringMatching(/^removed nft table ip podwire-subnet-[0-9a-f]{8}$/),
        expect.stringMatching(/^removed accepts in iptables-(nft|legacy) FORWARD$/),
        expect.stringMatching(/^removed accepts in iptables-(nft|legacy) FORWARD$/),
        'removed route 10.42.200.0/24 via 10.42.200.0 dev flannel.7',
        `removed blackhole route ${base}.0/24 metric 32768`,
        'removed vxlan device flannel.7',
        `removed control socket ${join(bed.a.run, 'podwire-subnet.sock')}`,
      ].sort((a, b) => said.findIndex((line) => matches(a, line)) - said.findIndex((line) => matches(b, line))),
    );
    expect(await rules()).not.toMatch(/podwire|FLANNEL|10\.42\./);
    expect(await bed.a.ns.ip('-br', 'link')).not.toContain('flannel');
    // What others have stays.
    expect(await sh('iptables-legacy -S FORWARD')).toBe('-P FORWARD DROP\n');
    expect(await stat(bed.a.subnetFile)).toBeTruthy();
    expect(await cleanup()).toMatchObject({
      code: 0,
      stdout: `nothing is left of an agent with ${bed.a.subnetFile}\n`,
      stderr: '',
    });
  });

  it('cleanup of one agent leaves the other, and needs no subnet file for its own names', async () => {
    const other = join(bed.b.run, 'other.env');
    bed.store = await bed.makeStore('{"Network":"10.50.0.0/16","Backend":{"Type":"udp","Port":8290}}');
    await bed.startReady(bed.a, '--ip-masq', `--subnet-file=${other}`, '--device=pod5');
    const alone = await rules();
    bed.store = await bed.makeStore('{"Network":"10.42.0.0/16","Backend":{"Type":"udp"}}');
    const agent = await bed.startReady(bed.a, '--ip-masq');
    await kill(agent);
    await rm(bed.a.subnetFile);
    const done = await cleanup();
    expect(done).toMatchObject({ code: 0, stderr: '' });
    expect(done.stdout).toMatch(/names no pod network: routes, devices and flanneld's rules are left alone/);
    expect(done.stdout).toMatch(/^removed nft table ip podwire-subnet-/m);
    expect(await rules()).toBe(alone);
    await writeFile(bed.a.subnetFile, 'FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.1.1/24\n');
    expect((await cleanup()).stdout).toMatch(/^nothing is left/);
    expect(await rules()).toBe(alone);
  });

  it("in chains with flannel's names, only rules of known networks are taken for ours", async () => {
    const chain = (network: string): string =>
      `iptables-nft -A FLANNEL-FWD -s ${network} -m comment --comment "flanneld forward" -j ACCEPT; `;
    await sh(
      `iptables-nft -N FLANNEL-FWD; ${chain('10.42.0.0/16')} ${chain('10.99.0.0/16')}` +
        'iptables-nft -A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD',
    );
    // Flannel's own subnet file, in a /run of its own.
    const inFreshRun = (...extra: readonly string[]): Promise<string> =>
      bed.a.ns.ok('sh', [
        '-ec',
        'mount -t tmpfs tmpfs /run; exec "$@"',
        'sh',
        process.execPath,
        cli,
        'cleanup',
        ...extra,
      ]);
    const before = await rules();
    expect(await inFreshRun()).toBe(
      "/run/flannel/subnet.env names no pod network: routes, devices and flanneld's rules are left alone (see --network)\n" +
        'nothing is left of an agent with /run/flannel/subnet.env\n',
    );
    expect(await rules()).toBe(before);
    expect(await inFreshRun('--network=10.42.0.0/16')).toMatch(/^removed iptables-nft filter FLANNEL-FWD$/m);
    expect((await iptablesRules(bed.a.ns, 'iptables-nft')).slice(1)).toEqual([
      'filter -A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD',
      'filter -A FLANNEL-FWD -s 10.99.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT',
    ]);
    await inFreshRun('--network=10.99.0.0/16');
    expect(await iptablesRules(bed.a.ns, 'iptables-nft')).toEqual([]);
  });

  it('a wrong --network is a usage error', async () => {
    expect(await cleanup('--network=10.42')).toMatchObject({
      code: 2,
      stderr: expect.stringMatching(/^podwire: --network "10\.42" is no prefix/) as string,
    });
  });
});

function matches(expected: unknown, line: string): boolean {
  return typeof expected === 'string'
    ? expected === line
    : (expected as { asymmetricMatch(x: string): boolean }).asymmetricMatch(line);
}
