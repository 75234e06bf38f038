// @ts-check
/**
 * One host of the update benchmark: `node bench/scale/node.mjs CONFIG`, inside the host's namespace. An embedder's program,
 * on the built package: it opens a data plane, routes the peer's subnet and many others, and on SIGUSR2 changes those others
 * at a fixed pace while packets pass.
 *
 * CONFIG is JSON: { address, subnet, peer: { address, subnet }, network, routes, updatesPerSecond, seconds }.
 * Prints `ready`, and after the updates one line: { updates, seconds, drops } with `drops` the drop counters that moved
 * between SIGUSR2 and the end. Ends on SIGTERM.
 */
import { execFileSync } from 'node:child_process';
import { setTimeout as delay } from 'node:timers/promises';
import { Dataplane } from '../../dist/index.js';

const DEVICE = 'flannel0';
/** Underlay addresses of hosts that do not exist. */
const ABSENT_HOSTS = 5000;
const SLICE_MS = 5;

/** @type {{ address: string, subnet: string, peer: { address: string, subnet: string }, network: string, routes: number, updatesPerSecond: number, seconds: number }} */
const config = JSON.parse(process.argv[2] ?? '{}');

/** Route number i: a /24 of 11.0.0.0/8 and above, so never one of the pods'. @param {number} i */
const prefixOf = (i) => `${11 + (i >>> 16)}.${(i >>> 8) & 255}.${i & 255}.0/24`;

/** @param {number} i */
const hostOf = (i) => ({ address: `172.${16 + ((i % ABSENT_HOSTS) >>> 8)}.${(i % ABSENT_HOSTS) & 255}.1` });

/**
 * @param {number} i
 * @returns {[string, { address: string }]}
 */
const routeOf = (i) => [prefixOf(i), hostOf(i)];

const plane = await Dataplane.open({
  device: DEVICE,
  bind: { address: config.address },
  local: [config.subnet],
  maxRoutes: config.routes + 16,
  pathMtu: false,
});
plane.routes.replace([
  [config.peer.subnet, { address: config.peer.address }],
  ...Array.from({ length: config.routes }, (_, i) => routeOf(i)),
]);
for (const line of [
  `link set ${DEVICE} mtu ${plane.mtu.overlay} up`,
  `address add ${config.subnet.replace(/\/\d+$/, '/32')} dev ${DEVICE}`,
  `route add ${config.network} dev ${DEVICE}`,
]) {
  execFileSync('ip', line.split(' '));
}

/** @returns {Record<string, number>} */
const drops = () =>
  Object.fromEntries(Object.entries(plane.stats().totals).filter(([name]) => name.startsWith('drop')));

/** Every second update withdraws a route, the next one gives it back with another next hop. */
async function update() {
  const before = drops();
  const start = performance.now();
  let updates = 0;
  for (let elapsed = 0; elapsed < config.seconds * 1000; elapsed = performance.now() - start) {
    const due = Math.floor((elapsed * config.updatesPerSecond) / 1000);
    for (; updates < due; updates += 2) {
      const prefix = prefixOf((updates * 7919) % config.routes);
      plane.routes.delete(prefix);
      plane.routes.set(prefix, hostOf(updates));
    }
    await delay(SLICE_MS);
  }
  const seconds = (performance.now() - start) / 1000;
  const moved = Object.entries(drops()).filter(([name, count]) => count !== before[name]);
  process.stdout.write(
    `${JSON.stringify({ updates, seconds, drops: Object.fromEntries(moved.map(([name, count]) => [name, count - (before[name] ?? 0)])) })}\n`,
  );
}

process.on('SIGUSR2', () => void update());
process.on('SIGTERM', () => void plane.close());
process.stdout.write('ready\n');
await plane.closed;
