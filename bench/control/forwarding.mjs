// @ts-check
/**
 * How soon packets follow the store: datagrams go to a subnet every millisecond while a lease for it comes and goes, and
 * the other host notes when the first and the last one arrives.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { join } from 'node:path';
import { etcdStore } from '../../dist/control/stores/etcd.js';
import { BenchError, waitFor } from '../lib/process.mjs';
import { fileAppears, logLine, startAgent } from './agents.mjs';
import { configOf, leaseKeyOf, leaseOf } from './etcd.mjs';
import { Listener, nowUs, Sender } from './traffic.mjs';

const DATA_PORT = 8285;
/** Of an inner IPv4 packet with UDP. */
const INNER_HEADERS = 28;
const PER_SECOND = 1000;
/** A route that is gone lets nothing pass for this long; longer than a busy machine keeps the sender waiting. */
const SILENCE_MS = 100;
const STEADY_MS = 20;
/** Not counted: the first changes of an agent meet code that is not compiled yet. */
const WARM_UPS = 3;

/**
 * One agent, and a host that has leases written for it: from the write's sending to the first datagram that arrives, and
 * from the delete's to the last.
 * @param {import('./measure.mjs').Context} context
 * @returns {Promise<{ join: number[], leave: number[] }>} milliseconds
 */
export async function measureForwarding({ etcd, place, other, workDir, signal, settings, log }) {
  const prefix = '/bench/forwarding';
  const subnet = '10.77.250.0';
  await etcd.write([configOf(prefix, '10.77.0.0/16')]);
  const found = { join: /** @type {number[]} */ ([]), leave: /** @type {number[]} */ ([]) };
  const directory = join(workDir, 'forwarding');
  const agent = startAgent('podwire', place, { endpoint: etcd.endpoint, prefix, directory });
  /** @type {Listener | undefined} */
  let listener;
  /** @type {Sender | undefined} */
  let sender;
  try {
    await ready(agent.daemon, signal);
    listener = await Listener.start(other.netns ?? '', {
      address: other.address,
      port: DATA_PORT,
      offset: INNER_HEADERS,
      directory,
      signal,
    });
    sender = new Sender('10.77.250.2', 9, PER_SECOND);
    for (let trial = -WARM_UPS; trial < settings.changes; trial++) {
      const joinedUs = nowUs();
      await etcd.write([leaseOf(prefix, subnet, other.address)]);
      const first = await arrivalSince(listener, joinedUs, signal);
      await delay(STEADY_MS);
      const leftUs = nowUs();
      await etcd.write([{ key: leaseKeyOf(prefix, subnet) }]);
      const last = await lastArrival(listener, leftUs, signal);
      if (trial < 0) continue;
      found.join.push((first - joinedUs) / 1000);
      found.leave.push(Math.max(0, (last - leftUs) / 1000));
    }
  } finally {
    await sender?.stop();
    await listener?.daemon.stop();
    await agent.daemon.stop();
  }
  log(`forwarding: ${settings.changes} joins and leaves in packets`);
  return found;
}

/**
 * Two real agents: from the second one's lease in the store to the first datagram that passes through both.
 * @param {import('./measure.mjs').Context} context
 * @returns {Promise<number[]>} milliseconds
 */
export async function measureAgents({ etcd, place, other, workDir, signal, settings, log }) {
  const prefix = '/bench/agents';
  await etcd.write([configOf(prefix, '10.77.0.0/16')]);
  const directory = join(workDir, 'agents');
  const first = startAgent('podwire', place, { endpoint: etcd.endpoint, prefix, directory: join(directory, 'a') });
  const store = etcdStore({ endpoints: [etcd.endpoint], prefix });
  /** Subnet and time of the latest lease of the second host. @type {{ subnet: string, atUs: number } | undefined} */
  let seen;
  const watching = new AbortController();
  const watch = (async () => {
    for await (const change of store.watch(watching.signal)) {
      if (change.kind !== 'added' || change.lease.attributes.publicIp.toString() !== other.address) continue;
      seen ??= { subnet: change.lease.subnet.address.toString(), atUs: nowUs() };
    }
  })();
  const found = [];
  try {
    await ready(first.daemon, signal);
    let subnet = '';
    for (let trial = 0; trial <= settings.agents; trial++) {
      seen = undefined;
      // It listens on every address: the second agent's device has the subnet's own, once there is one.
      const listener = await Listener.start(other.netns ?? '', {
        address: '0.0.0.0',
        port: 9,
        offset: 0,
        directory,
        signal,
      });
      // The first trial only finds out which subnet that host has; it keeps it by its subnet file.
      const sender = subnet === '' ? undefined : new Sender(subnet, 9, PER_SECOND);
      const agent = startAgent('podwire', other, {
        endpoint: etcd.endpoint,
        prefix,
        directory: join(directory, 'b'),
        extra: ['--release-on-exit=true'],
      });
      try {
        const lease = await waitFor('the lease of the second agent', () => seen, {
          signal,
          alive: [agent.daemon],
          timeoutMs: 20_000,
        });
        if (sender !== undefined) {
          // The listener is as new as the agent: what it hears has passed through both.
          const firstUs = await arrivalSince(listener, 0, signal);
          found.push((firstUs - lease.atUs) / 1000);
        } else {
          await fileAppears(agent.subnetFile, agent.daemon, signal);
        }
        subnet = lease.subnet;
      } finally {
        await sender?.stop();
        await agent.daemon.stop();
        await listener.daemon.stop();
      }
    }
  } finally {
    watching.abort();
    await watch;
    await store[Symbol.asyncDispose]();
    await first.daemon.stop();
  }
  log(`agents: ${settings.agents} joins of a real agent, ${found.map((ms) => ms.toFixed(0)).join(' ')} ms`);
  return found;
}

/**
 * @param {import('../lib/process.mjs').Daemon} daemon
 * @param {AbortSignal} signal
 */
export async function ready(daemon, signal) {
  await waitFor(`${daemon.name} to be ready`, () => logLine(daemon, 'ready'), {
    signal,
    alive: [daemon],
    timeoutMs: 20_000,
  });
}

/**
 * @param {Listener} listener
 * @param {number} sinceUs
 * @param {AbortSignal} signal
 */
async function arrivalSince(listener, sinceUs, signal) {
  const found = await waitFor('a datagram to arrive', () => listener.look().find(({ atUs }) => atUs >= sinceUs), {
    signal,
    alive: [listener.daemon],
  });
  return found.atUs;
}

/**
 * The last arrival before a silence.
 * @param {Listener} listener
 * @param {number} fromUs
 * @param {AbortSignal} signal
 */
async function lastArrival(listener, fromUs, signal) {
  const deadline = performance.now() + 10_000;
  for (;;) {
    signal.throwIfAborted();
    await delay(5);
    const last = listener.look().at(-1)?.atUs ?? fromUs;
    if (nowUs() - Math.max(last, fromUs) > SILENCE_MS * 1000) return last;
    if (performance.now() > deadline) throw new BenchError('datagrams still pass 10 s after the lease was deleted');
  }
}
