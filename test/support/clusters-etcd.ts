import { counterpart } from './counterparts.js';
import type { NetNs } from './netns.js';
import { type Process, until } from './process.js';

export const ETCD_PREFIX = '/coreos.com/network';

/** A lease key as it is in etcd. */
export interface StoredLease {
  /** The last part of the key: `10.42.7.0-24`. */
  readonly name: string;
  /** The value's exact text. */
  readonly value: string;
  readonly publicIp: string | undefined;
  /** The id of the etcd lease it hangs on, in hexadecimal; `0`: none, a reservation. */
  readonly leaseId: string;
  readonly createRevision: number;
  readonly modRevision: number;
}

interface RangeResponse {
  readonly kvs?: readonly {
    key: string;
    value?: string;
    lease?: string;
    create_revision: number;
    mod_revision: number;
  }[];
}

const text = (base64: string | undefined): string => Buffer.from(base64 ?? '', 'base64').toString('utf8');

/** One etcd server in a namespace; the data outlive {@link stop}. */
export class EtcdServer {
  readonly url: string;
  readonly #ns: NetNs;
  readonly #data: string;
  #process: Process | undefined;

  constructor(ns: NetNs, address: string, data: string) {
    this.#ns = ns;
    this.#data = data;
    this.url = `http://${address}:2379`;
  }

  async start(): Promise<void> {
    const own = ['--data-dir', this.#data, '--unsafe-no-fsync', '--log-level', 'warn'];
    const listen = ['--listen-client-urls', `http://127.0.0.1:2379,${this.url}`, '--advertise-client-urls', this.url];
    const server = this.#ns.spawn(counterpart('etcd-3.6'), [...own, ...listen]);
    this.#process = server;
    await until(
      async () => {
        if (!server.running) throw new Error(`etcd ended: ${server.stderr}`);
        return (await this.#ns.run(counterpart('etcdctl'), ['endpoint', 'health'])).code === 0;
      },
      { what: 'etcd to answer', timeoutMs: 20_000, intervalMs: 50 },
    );
  }

  /** Ends the server as an operator would, or as a power cut with SIGKILL. */
  async stop(signal: NodeJS.Signals = 'SIGTERM'): Promise<void> {
    await this.#process?.stop(signal);
    this.#process = undefined;
  }

  /** Runs etcdctl to its end; throws with its output when it fails. */
  async ctl(...args: readonly string[]): Promise<string> {
    return await this.#ns.ok(counterpart('etcdctl'), args);
  }

  /** Writes the network config. */
  async setConfig(config: unknown): Promise<void> {
    await this.ctl('put', `${ETCD_PREFIX}/config`, typeof config === 'string' ? config : JSON.stringify(config));
  }

  /** A key under `subnets/` without a lease: what an operator writes as a reservation, or by mistake. */
  async putSubnet(name: string, value: string): Promise<void> {
    await this.ctl('put', '--', `${ETCD_PREFIX}/subnets/${name}`, value);
  }

  async removeSubnet(name: string): Promise<void> {
    await this.ctl('del', `${ETCD_PREFIX}/subnets/${name}`);
  }

  /** Everything under `subnets`, in the order of the keys. */
  async leases(): Promise<StoredLease[]> {
    const json = await this.ctl('get', '--prefix', `${ETCD_PREFIX}/subnets`, '-w', 'json');
    // Lease ids have 63 bits, more than a number takes.
    const { kvs } = JSON.parse(json.replace(/"lease":(\d+)/g, '"lease":"$1"')) as RangeResponse;
    return (kvs ?? []).map((kv) => {
      const value = text(kv.value);
      return {
        name: text(kv.key).slice(`${ETCD_PREFIX}/subnets/`.length),
        value,
        publicIp: /"PublicIP":"([^"]*)"/.exec(value)?.[1],
        leaseId: BigInt(kv.lease ?? 0).toString(16),
        createRevision: kv.create_revision,
        modRevision: kv.mod_revision,
      };
    });
  }

  /** Seconds until the key's etcd lease ends, `undefined` without one, and what was granted. */
  async timeToLive({ leaseId }: StoredLease): Promise<{ ttl: number; granted: number } | undefined> {
    if (leaseId === '0') return undefined;
    const json = await this.ctl('lease', 'timetolive', leaseId, '-w', 'json');
    const { ttl, 'granted-ttl': granted } = JSON.parse(json) as { ttl: number; 'granted-ttl': number };
    return { ttl, granted };
  }
}
