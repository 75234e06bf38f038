/** The directory store under real processes: many at once for few subnets, and writers killed anywhere. */
import { fork, type ChildProcess } from 'node:child_process';
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { ManualClock } from '../../src/control/clock.js';
import { decodeLease, encodeLease } from '../../src/control/lease-codec.js';
import { leaseKey, parseLeaseKey } from '../../src/control/lease-key.js';
import { overlap } from '../../src/control/lease.js';
import { directoryStore } from '../../src/control/stores/directory.js';
import { attributesOf, Signal } from '../support/leases.js';
import { root } from '../support/process.js';
import { generator, pick, seed } from '../support/random.js';
import { missing } from '../support/requires.js';

type Report =
  | { readonly kind: 'ready' }
  | { readonly kind: 'acquired' | 'releasing'; readonly key: string }
  | { readonly kind: 'failed'; readonly code: string; readonly message: string };

let path: string;
let subnets: string;
const children = new Set<Agent>();

/** A child process that is one host. */
class Agent {
  readonly publicIp: string;
  readonly child: ChildProcess;
  readonly reports: Report[] = [];
  readonly signal = new Signal();
  readonly exited: Promise<void>;

  constructor(publicIp: string, mode: string, onReport: (report: Report) => void = () => undefined) {
    this.publicIp = publicIp;
    this.child = fork(join(root, 'test/support/store-agent.mjs'), [path, publicIp, mode], {
      stdio: 'inherit',
      execArgv: [],
    });
    this.exited = new Promise((resolve) => this.child.once('exit', () => resolve()));
    this.child.on('message', (message) => {
      const report = message as Report;
      this.reports.push(report);
      onReport(report);
      this.signal.fire();
      if (report.kind !== 'ready') this.answer();
    });
    children.add(this);
  }

  answer(): void {
    if (this.child.connected) this.child.send('go', () => undefined);
  }

  /** Resolves with the first report of this kind; rejects when the agent fails or ends before. */
  async until(kind: Report['kind']): Promise<void> {
    const has = (wanted: Report['kind']): boolean => this.reports.some((report) => report.kind === wanted);
    const isOver = this.exited.then(() => true);
    const isThere = this.signal.until(() => has(kind) || has('failed')).then(() => false);
    if ((await Promise.race([isThere, isOver])) && !has(kind)) throw new Error(`agent ${this.publicIp} ended`);
    if (!has(kind)) throw new Error(`agent ${this.publicIp}: ${JSON.stringify(this.reports.at(-1))}`);
  }

  async kill(): Promise<void> {
    this.child.kill('SIGKILL');
    await this.exited;
    children.delete(this);
  }
}

/** Reads the store over and over, as a peer does, and keeps what it must never see. */
class Reader {
  readonly faults: string[] = [];
  /** Keys that must be there at every look, with the address they belong to. */
  readonly required = new Map<string, string>();
  looks = 0;
  #isStopped = false;
  readonly #done = this.#run();

  async stop(): Promise<void> {
    this.#isStopped = true;
    await this.#done;
  }

  async #run(): Promise<void> {
    while (!this.#isStopped) {
      const required = [...this.required];
      for (const name of await readdir(subnets)) {
        const text = await readFile(join(subnets, name), 'utf8').catch(() => undefined);
        if (text === undefined) continue;
        try {
          parseLeaseKey(name);
          decodeLease(text);
        } catch (error) {
          this.faults.push(`${name}: ${JSON.stringify(text)}: ${String(error)}`);
        }
      }
      for (const [key, publicIp] of required) {
        const text = await readFile(join(subnets, key), 'utf8').catch(() => '{}');
        if (decodeLease(text).attributes.publicIp.toString() !== publicIp)
          this.faults.push(`${key}: lost by ${publicIp}`);
      }
      this.looks++;
    }
  }
}

beforeEach(async () => {
  path = await mkdtemp(join(tmpdir(), 'podwire-processes-'));
  subnets = join(path, 'subnets');
  await mkdir(subnets);
});

afterEach(async () => {
  for (const agent of children) await agent.kill();
  await rm(path, { recursive: true, force: true });
});

describe.skipIf(missing({ files: ['dist/control/stores/directory.js'] }))(`directory store (seed ${seed})`, () => {
  describe('twenty agents at once', { timeout: 60_000 }, () => {
    const race = async (): Promise<{ won: string[]; lost: string[] }> => {
      const agents = Array.from({ length: 20 }, (_, i) => new Agent(`192.0.2.${i + 1}`, 'race'));
      await Promise.all(agents.map((agent) => agent.until('ready')));
      for (const agent of agents) agent.answer();
      await Promise.all(agents.map(({ exited }) => exited));
      for (const agent of agents) children.delete(agent);
      const results = agents.map((agent) => agent.reports.at(-1));
      expect(results.every((report) => report?.kind === 'acquired' || report?.kind === 'failed')).toBe(true);
      return {
        won: results.flatMap((report) => (report?.kind === 'acquired' ? [report.key] : [])),
        lost: results.flatMap((report) => (report?.kind === 'failed' ? [report.code] : [])),
      };
    };
    const hold = (key: string, ms: number): Promise<void> =>
      writeFile(
        join(subnets, key),
        encodeLease(attributesOf('198.51.100.1'), { expiresAt: new Date(Date.now() + ms), owner: key }),
      );

    it('on a nearly full network: each its own subnet or the one clear error', async () => {
      await writeFile(join(path, 'config'), '{"Network":"10.42.0.0/23","SubnetLen":28}');
      // 31 subnets, of which 19 are held.
      for (let i = 1; i <= 19; i++) await hold(`10.42.${i >> 4}.${(i & 15) * 16}-28`, 3_600_000);
      const { won, lost } = await race();
      expect(new Set(won).size).toBe(12);
      expect(won).toHaveLength(12);
      expect(lost).toEqual(Array.from({ length: 8 }, () => 'OUT_OF_SUBNETS'));
      expect(await readdir(subnets)).toHaveLength(31);
    });

    it('for leases that have expired: each is taken once', async () => {
      await writeFile(join(path, 'config'), '{"Network":"10.42.0.0/24","SubnetLen":28}');
      for (let i = 1; i <= 15; i++) await hold(`10.42.0.${i * 16}-28`, -3_600_000);
      const { won, lost } = await race();
      expect(new Set(won).size).toBe(15);
      expect(won).toHaveLength(15);
      expect(lost).toEqual(Array.from({ length: 5 }, () => 'OUT_OF_SUBNETS'));
      expect((await readdir(subnets)).sort()).toEqual(won.sort());
      expect(await readdir(join(path, '.podwire'))).toEqual([]);
    });

    it('in dual stack: no subnet of either family twice', async () => {
      await writeFile(
        join(path, 'config'),
        '{"Network":"10.42.0.0/23","SubnetLen":28,"EnableIPv6":true,"IPv6Network":"fd00:42::/59"}',
      );
      const { won, lost } = await race();
      expect(lost).toEqual([]);
      const leases = won.map(parseLeaseKey);
      for (const lease of leases) expect(leases.filter((other) => overlap(other, lease))).toEqual([lease]);
    });
  });

  describe('kill -9 of writers', { timeout: 120_000 }, () => {
    const KILLS = 16;
    const random = generator(seed);

    /** Lets agents write, and kills and restarts one of them after another. */
    const rampage = async (mode: string, onReport: (publicIp: string, report: Report) => void): Promise<Agent[]> => {
      const boot = async (publicIp: string): Promise<Agent> => {
        const agent = new Agent(publicIp, mode, (report) => onReport(publicIp, report));
        await agent.until('ready');
        agent.answer();
        await agent.until('acquired');
        return agent;
      };
      const agents = await Promise.all([1, 2, 3, 4].map((host) => boot(`192.0.2.${host}`)));
      for (let i = 0; i < KILLS; i++) {
        const victim = pick(random, agents);
        // Some way into whatever it is doing: a number of turns, not a time.
        for (let turns = Math.floor(random() * 200); turns > 0; turns--)
          await new Promise((resolve) => setImmediate(resolve));
        await victim.kill();
        agents[agents.indexOf(victim)] = await boot(victim.publicIp);
      }
      return agents;
    };

    it('that renew: nobody ever sees half a lease, or one missing', async () => {
      await writeFile(join(path, 'config'), '{"Network":"10.42.0.0/24","SubnetLen":28}');
      const reader = new Reader();
      const keys = new Map<string, Set<string>>();
      const agents = await rampage('renew', (publicIp, report) => {
        if (report.kind !== 'acquired') return;
        keys.set(publicIp, (keys.get(publicIp) ?? new Set()).add(report.key));
        reader.required.set(report.key, publicIp);
      });
      await reader.stop();
      expect(reader.faults).toEqual([]);
      expect(reader.looks).toBeGreaterThan(10);
      // Every life of a host had the same lease.
      expect([...keys.values()].map(({ size }) => size)).toEqual([1, 1, 1, 1]);
      for (const agent of agents) await agent.kill();
      expect(await readdir(subnets)).toHaveLength(4);
    });

    it.each(['churn', 'expired'])(
      'that take and leave (%s): no half lease, none held twice, none stuck',
      async (mode) => {
        await writeFile(join(path, 'config'), '{"Network":"10.42.0.0/25","SubnetLen":28}');
        const reader = new Reader();
        const holders = new Map<string, string>();
        const doubled: string[] = [];
        const agents = await rampage(mode, (publicIp, report) => {
          if (report.kind === 'releasing') holders.delete(report.key);
          if (report.kind !== 'acquired') return;
          const holder = holders.get(report.key);
          // A lease of one second may be another's by now; one of an hour may not.
          if (mode === 'churn' && holder !== undefined && holder !== publicIp)
            doubled.push(`${report.key}: ${holder}, ${publicIp}`);
          for (const [key, other] of holders) if (other === publicIp) holders.delete(key);
          holders.set(report.key, publicIp);
        });
        for (const agent of agents) await agent.kill();
        await reader.stop();
        expect(reader.faults).toEqual([]);
        expect(reader.looks).toBeGreaterThan(10);
        expect(doubled).toEqual([]);

        // A day later the whole network is to be had again, whatever the dead have left behind.
        const clock = new ManualClock(Date.now() + 24 * 3_600_000);
        const leases = [];
        for (let host = 1; host <= 7; host++) {
          await using store = directoryStore(path, { clock });
          leases.push(await store.acquire({ attributes: attributesOf(`198.51.100.${host}`) }));
        }
        expect(new Set(leases.map(leaseKey)).size).toBe(7);
        expect((await readdir(subnets)).sort()).toEqual(leases.map(leaseKey).sort());
      },
    );
  });
});
