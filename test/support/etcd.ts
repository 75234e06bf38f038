/**
 * Real etcd for tests: one member or several on loopback ports, in a directory of its own, ended by process id.
 */
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { counterpart, type Counterpart } from './counterparts.js';
import { ok, Process, until } from './process.js';

export type EtcdVersion = Extract<Counterpart, 'etcd-old' | 'etcd-3.6'>;

export interface EtcdOptions {
  readonly version?: EtcdVersion;
  /** Default 1. */
  readonly members?: number;
  /** More arguments for every member. */
  readonly args?: readonly string[];
  /** Paths of PEM files: serves https, and demands client certificates. */
  readonly tls?: { readonly ca: string; readonly cert: string; readonly key: string };
}

interface Member {
  readonly name: string;
  readonly url: string;
  readonly peerUrl: string;
  process: Process;
}

/** A cluster that answers. Dispose ends every member and removes its data. */
export class EtcdCluster implements AsyncDisposable {
  readonly #options: EtcdOptions;
  readonly #directory: string;
  readonly #members: Member[] = [];

  private constructor(options: EtcdOptions, directory: string) {
    this.#options = options;
    this.#directory = directory;
  }

  static async start(options: EtcdOptions = {}): Promise<EtcdCluster> {
    for (let attempt = 1; ; attempt++) {
      try {
        return await EtcdCluster.#start(options);
      } catch (error) {
        // A port that was free a moment ago can be somebody else's by now.
        if (attempt === 3 || !/address already in use/.test(String(error))) throw error;
      }
    }
  }

  static async #start(options: EtcdOptions): Promise<EtcdCluster> {
    // The disk is not what is tested, and a shared one makes elections time out.
    const base = existsSync('/dev/shm') ? '/dev/shm' : tmpdir();
    const cluster = new EtcdCluster(options, await mkdtemp(join(base, 'pwet-etcd-')));
    try {
      const count = options.members ?? 1;
      const ports = await freePorts(count * 2);
      const scheme = options.tls ? 'https' : 'http';
      const planned = Array.from({ length: count }, (_, i) => ({
        name: `m${i}`,
        url: `${scheme}://127.0.0.1:${ports[i * 2]}`,
        peerUrl: `http://127.0.0.1:${ports[i * 2 + 1]}`,
      }));
      const initial = planned.map(({ name, peerUrl }) => `${name}=${peerUrl}`).join(',');
      for (const member of planned) cluster.#members.push({ ...member, process: cluster.#spawn(member, initial) });
      await Promise.all(cluster.#members.map((member) => cluster.#answers(member)));
      return cluster;
    } catch (error) {
      await cluster[Symbol.asyncDispose]();
      throw error;
    }
  }

  get urls(): string[] {
    return this.#members.map(({ url }) => url);
  }

  get size(): number {
    return this.#members.length;
  }

  url(index: number): string {
    return this.#members[index]!.url;
  }

  isRunning(index: number): boolean {
    return this.#members[index]!.process.running;
  }

  /** Ends a member as a power cut would; its data stay. */
  async kill(index: number): Promise<void> {
    await this.#members[index]!.process.stop('SIGKILL');
  }

  /** A member that hangs: connections stay open and nothing is answered. */
  pause(index: number): void {
    this.#members[index]!.process.child.kill('SIGSTOP');
  }

  resume(index: number): void {
    this.#members[index]!.process.child.kill('SIGCONT');
  }

  /** Starts a killed member with its data, or without: then as the first of a new cluster. */
  async restart(index: number, options: { readonly wipe?: boolean; readonly wait?: boolean } = {}): Promise<void> {
    const member = this.#members[index]!;
    if (options.wipe) await rm(join(this.#directory, member.name), { recursive: true, force: true });
    const initial = this.#members.map(({ name, peerUrl }) => `${name}=${peerUrl}`).join(',');
    member.process = this.#spawn(member, initial);
    if (options.wait !== false) await this.#answers(member);
  }

  /** Runs etcdctl (API 3) against one member. */
  ctl(args: readonly string[], index = 0): Promise<string> {
    const { tls } = this.#options;
    const certificates = tls ? ['--cacert', tls.ca, '--cert', tls.cert, '--key', tls.key] : [];
    const command = ['--endpoints', this.url(index), ...certificates, ...args];
    return ok(counterpart('etcdctl'), command, { env: { ...process.env, ETCDCTL_API: '3' } });
  }

  /** Which member leads. */
  async leader(): Promise<number> {
    return until(
      async () => {
        for (const [i, { process }] of this.#members.entries()) {
          if (!process.running) continue;
          const text = await this.ctl(['endpoint', 'status', '-w', 'json', '--command-timeout=2s'], i).catch(() => '');
          // Ids exceed what a JavaScript number holds exactly.
          const [own, lead] = [/"member_id":(\d+)/.exec(text)?.[1], /"leader":(\d+)/.exec(text)?.[1]];
          if (own !== undefined && own === lead) return { index: i };
        }
        return undefined;
      },
      { what: 'a leader of the etcd cluster', timeoutMs: 20_000, intervalMs: 100 },
    ).then(({ index }) => index);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const { process } of this.#members) {
      if (process.running) process.child.kill('SIGCONT');
      await process.stop('SIGKILL').catch(() => undefined);
    }
    await rm(this.#directory, { recursive: true, force: true });
  }

  #spawn({ name, url, peerUrl }: Pick<Member, 'name' | 'url' | 'peerUrl'>, initial: string): Process {
    const { version = 'etcd-3.6', args = [], tls } = this.#options;
    const certificates = tls
      ? ['--cert-file', tls.cert, '--key-file', tls.key, '--trusted-ca-file', tls.ca, '--client-cert-auth']
      : [];
    return new Process(counterpart(version), [
      '--name',
      name,
      '--data-dir',
      join(this.#directory, name),
      '--listen-client-urls',
      url,
      '--advertise-client-urls',
      url,
      '--listen-peer-urls',
      peerUrl,
      '--initial-advertise-peer-urls',
      peerUrl,
      '--initial-cluster',
      initial,
      '--initial-cluster-state',
      'new',
      '--log-level',
      'error',
      // A member alone elects itself after one election timeout; several need room on a busy machine.
      ...((this.#options.members ?? 1) > 1
        ? ['--heartbeat-interval', '100', '--election-timeout', '1000']
        : ['--heartbeat-interval', '10', '--election-timeout', '100']),
      ...certificates,
      ...args,
    ]);
  }

  async #answers({ name, url, process }: Member): Promise<void> {
    const index = this.#members.findIndex((member) => member.url === url);
    await until(
      async () => {
        if (!process.running) throw new Error(`etcd ${name} ended: ${process.stderr.slice(-2000)}`);
        return this.ctl(['get', 'ready', '--command-timeout=1s'], index).then(
          () => true,
          // With authentication on it answers by refusing.
          (error: unknown) => /user name is empty/.test(String(error)),
        );
      },
      { what: `etcd ${name} to answer at ${url}`, timeoutMs: 30_000, intervalMs: 20 },
    );
  }
}

async function freePorts(count: number): Promise<number[]> {
  const servers = await Promise.all(
    Array.from({ length: count }, async () => {
      const server = createServer();
      await new Promise<void>((resolve, reject) => {
        server.once('error', reject);
        server.listen(0, '127.0.0.1', resolve);
      });
      return server;
    }),
  );
  const ports = servers.map((server) => {
    const address = server.address();
    if (address === null || typeof address === 'string') throw new Error('no port');
    return address.port;
  });
  await Promise.all(servers.map((server) => new Promise((resolve) => server.close(resolve))));
  return ports;
}
