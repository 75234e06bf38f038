// @ts-check
/**
 * An agent in a network of 5,000 hosts: its first snapshot, its memory, and 1,000 changes a second that it follows while
 * datagrams pass to a host that does not change.
 */
import { readFileSync } from 'node:fs';
import { request } from 'node:http';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { BenchError, waitFor } from '../lib/process.mjs';
import { logLine, startAgent } from './agents.mjs';
import { configOf, leaseKeyOf, leaseOf } from './etcd.mjs';
import { ready } from './forwarding.mjs';
import { Listener, Sender } from './traffic.mjs';

const HOSTS = 5000;
const CHANGES_PER_SECOND = 1000;
/** In one transaction: so many each 10 ms. */
const TOGETHER = 10;
const PACKETS_PER_SECOND = 1000;
const DATA_PORT = 8285;
const INNER_HEADERS = 28;
/** The subnet of the host that listens; no number of {@link subnetOf}. */
const STEADY = '10.250.0.0';

/** @param {number} i */
const subnetOf = (i) => `10.${1 + (i >> 8)}.${i & 255}.0`;
/** @param {number} i @param {number} version */
const hostOf = (i, version) => `172.${16 + (version % 8)}.${i >> 8}.${1 + (i & 127)}`;

/**
 * @param {import('./measure.mjs').Context} context
 * @returns {Promise<Record<string, number>>}
 */
export async function measureScale({ etcd, place, other, workDir, signal, settings, log }) {
  const prefix = '/bench/scale';
  const directory = join(workDir, 'scale');
  /** Public address of each host whose lease is there. @type {Map<number, string>} */
  const expected = new Map(Array.from({ length: HOSTS }, (_, i) => [i, hostOf(i, 0)]));
  await etcd.write([configOf(prefix, '10.0.0.0/8'), leaseOf(prefix, STEADY, other.address)]);
  await etcd.writeAll(Array.from(expected, ([i, address]) => leaseOf(prefix, subnetOf(i), address)));
  const from = Date.now();
  const agent = startAgent('podwire', place, {
    endpoint: etcd.endpoint,
    prefix,
    directory,
    extra: ['--path-mtu-probes=false'],
  });
  /** @type {Listener | undefined} */
  let listener;
  /** @type {Sender | undefined} */
  let sender;
  try {
    await ready(agent.daemon, signal);
    const known = await waitFor('the snapshot', () => logLine(agent.daemon, 'leases of the other hosts are known'), {
      signal,
      alive: [agent.daemon],
      timeoutMs: 30_000,
    });
    if (known.fields['routes'] !== HOSTS + 1) {
      throw new BenchError(`the first snapshot had ${known.fields['routes']} routes, not ${HOSTS + 1}`);
    }
    const acquiredMs = logLine(agent.daemon, 'lease acquired')?.atMs ?? Number.NaN;
    const values = { 'control.snapshot': known.atMs - acquiredMs, 'control.snapshotStart': known.atMs - from };
    log(
      `5,000 leases: applied ${values['control.snapshot']} ms after the own lease, ${values['control.snapshotStart']} ms after the start`,
    );
    const idleMiB = memoryMiB(agent.daemon.pid, 'VmRSS');

    listener = await Listener.start(other.netns ?? '', {
      address: other.address,
      port: DATA_PORT,
      offset: INNER_HEADERS,
      directory,
      signal,
    });
    sender = new Sender('10.250.0.2', 9, PACKETS_PER_SECOND);
    await waitFor('datagrams to pass', () => (listener?.look().length ?? 0) > 50, { signal, alive: [agent.daemon] });
    const { changes, seconds } = await change(etcd, prefix, expected, settings.churnSeconds, signal);
    const lastAt = performance.now();
    // Before the status is asked for: its text of all hosts is not what the agent needs to follow them.
    const peakMiB = memoryMiB(agent.daemon.pid, 'VmHWM');
    await waitFor('the agent to have followed', () => hasFollowed(agent.controlSocket, expected), {
      signal,
      alive: [agent.daemon],
      timeoutMs: 60_000,
    });
    const lagMs = performance.now() - lastAt;
    await sender.stop();
    const { sent } = sender;
    const arrived = await allArrived(listener, sent);
    log(
      `churn: ${changes} changes in ${seconds.toFixed(1)} s, followed ${lagMs.toFixed(0)} ms after the last one, ${sent - arrived} of ${sent} datagrams lost`,
    );
    return {
      ...values,
      'control.memory': peakMiB,
      'control.memoryIdle': idleMiB,
      'control.churn': changes / seconds,
      'control.churnLag': lagMs,
      'control.churnLost': sent - arrived,
    };
  } finally {
    await sender?.stop();
    await listener?.daemon.stop();
    await agent.daemon.stop();
  }
}

/**
 * Deletes, returns and moves hosts, as many a second as it is meant to be.
 * @param {import('./etcd.mjs').Etcd} etcd
 * @param {string} prefix
 * @param {Map<number, string>} expected follows
 * @param {number} seconds
 * @param {AbortSignal} signal
 */
async function change(etcd, prefix, expected, seconds, signal) {
  const start = performance.now();
  const total = CHANGES_PER_SECOND * seconds;
  for (let done = 0; done < total; done += TOGETHER) {
    signal.throwIfAborted();
    const batch = Array.from({ length: TOGETHER }, (_, k) => {
      const i = ((done + k) * 7919) % HOSTS;
      const version = done + k + 1;
      const isThere = expected.has(i);
      if (isThere && version % 3 !== 0) {
        expected.delete(i);
        return { key: leaseKeyOf(prefix, subnetOf(i)) };
      }
      expected.set(i, hostOf(i, version));
      return leaseOf(prefix, subnetOf(i), hostOf(i, version));
    });
    await etcd.write(batch);
    const due = start + ((done + TOGETHER) * 1000) / CHANGES_PER_SECOND;
    await delay(Math.max(0, due - performance.now()));
  }
  return { changes: total, seconds: (performance.now() - start) / 1000 };
}

/**
 * Whether the agent routes exactly the leases that are there.
 * @param {string} controlSocket
 * @param {ReadonlyMap<number, string>} expected
 */
async function hasFollowed(controlSocket, expected) {
  const { leases } = await ask(controlSocket);
  const routed = new Map(
    leases
      .filter((/** @type {any} */ lease) => lease.state === 'routed')
      .map((/** @type {any} */ lease) => [lease.subnet, lease.publicIp]),
  );
  if (routed.size !== expected.size + 1) return false;
  for (const [i, address] of expected) if (routed.get(`${subnetOf(i)}/24`) !== address) return false;
  return true;
}

/**
 * @param {string} socketPath
 * @returns {Promise<any>}
 */
function ask(socketPath) {
  return new Promise((resolve, reject) => {
    const outgoing = request({ socketPath, path: '/v1/status' }, (response) => {
      let text = '';
      response.setEncoding('utf8');
      response.on('data', (part) => (text += part));
      response.on('end', () => resolve(JSON.parse(text)));
      response.on('error', reject);
    });
    outgoing.on('error', reject);
    outgoing.end();
  });
}

/**
 * Different datagrams that have arrived, once no more come.
 * @param {Listener} listener
 * @param {number} sent
 */
async function allArrived(listener, sent) {
  let arrived = 0;
  for (let quiet = 0; quiet < 10; quiet++) {
    await delay(30);
    const now = new Set(listener.look().map(({ number }) => number)).size;
    if (now === sent) return now;
    if (now > arrived) quiet = 0;
    arrived = now;
  }
  return arrived;
}

/**
 * @param {number} pid
 * @param {'VmRSS' | 'VmHWM'} what
 */
function memoryMiB(pid, what) {
  const kib = new RegExp(`^${what}:\\s+(\\d+) kB$`, 'm').exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1];
  return Number(kib) / 1024;
}
