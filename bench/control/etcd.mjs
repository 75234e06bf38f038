// @ts-check
/** An etcd of the benchmark's own, and writes to it through its JSON gateway. */
import { join } from 'node:path';
import { findProgram } from '../contenders/contender.mjs';
import { Daemon, waitFor } from '../lib/process.mjs';

/** @typedef {{ key: string, value: string } | { key: string }} Change a put, or without value a delete */

const base64 = (/** @type {string} */ text) => Buffer.from(text).toString('base64');

/** etcd's own limit of operations in one transaction. */
export const MOST_OPERATIONS = 128;

export class Etcd {
  /** @param {string} endpoint `http://host:port` */
  constructor(endpoint) {
    this.endpoint = endpoint;
  }

  /**
   * Starts a member with its data in `directory`, and waits until it takes a write.
   * @param {string} address to listen on
   * @param {string} directory
   * @param {AbortSignal} signal
   */
  static async start(address, directory, signal) {
    const endpoint = `http://${address}:2379`;
    const options = ['--data-dir', join(directory, 'etcd'), '--log-level', 'error'];
    options.push('--listen-client-urls', endpoint, '--advertise-client-urls', endpoint);
    options.push('--listen-peer-urls', `http://${address}:2380`);
    const daemon = new Daemon('etcd', [findProgram('etcd') ?? 'etcd', ...options], {
      logFile: join(directory, 'etcd.log'),
    });
    const etcd = new Etcd(endpoint);
    await waitFor(
      'etcd to take a write',
      () =>
        etcd.write([{ key: '/bench/up', value: '1' }]).then(
          () => true,
          () => false,
        ),
      {
        signal,
        alive: [daemon],
        timeoutMs: 20_000,
      },
    );
    return { etcd, daemon };
  }

  /**
   * One transaction; resolves when it is committed.
   * @param {readonly Change[]} changes at most {@link MOST_OPERATIONS}
   */
  async write(changes) {
    const success = changes.map((change) =>
      'value' in change
        ? { request_put: { key: base64(change.key), value: base64(change.value) } }
        : { request_delete_range: { key: base64(change.key) } },
    );
    const answer = await fetch(`${this.endpoint}/v3/kv/txn`, { method: 'POST', body: JSON.stringify({ success }) });
    const text = await answer.text();
    if (!answer.ok) throw new Error(`etcd refused a write: ${text}`);
  }

  /** @param {readonly Change[]} changes any number */
  async writeAll(changes) {
    for (let at = 0; at < changes.length; at += MOST_OPERATIONS)
      await this.write(changes.slice(at, at + MOST_OPERATIONS));
  }
}

/**
 * A lease as flanneld writes it for udp.
 * @param {string} prefix of the keys
 * @param {string} subnet `10.1.2.0`, a /24
 * @param {string} publicIp
 */
export function leaseOf(prefix, subnet, publicIp) {
  return { key: leaseKeyOf(prefix, subnet), value: `{"PublicIP":"${publicIp}","PublicIPv6":null}` };
}

/**
 * @param {string} prefix
 * @param {string} subnet
 */
export function leaseKeyOf(prefix, subnet) {
  return `${prefix}/subnets/${subnet}-24`;
}

/**
 * @param {string} prefix
 * @param {string} network
 */
export function configOf(prefix, network) {
  return {
    key: `${prefix}/config`,
    value: JSON.stringify({ Network: network, SubnetLen: 24, Backend: { Type: 'udp' } }),
  };
}
