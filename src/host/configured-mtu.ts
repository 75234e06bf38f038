/**
 * The MTU that this host's configuration sets for the way to a peer: the route's own (`ip route … mtu N`), else the
 * link's. What the kernel learnt from ICMP messages is left out on purpose, because anybody can forge those.
 */
import type { Address } from '../net/prefix.js';
import { ipJson, type Runner } from './exec.js';
import { field, listField, numberField, textField } from './interfaces.js';

const BATCH = 256;
const LINK_CACHE_MS = 5_000;

/**
 * Makes the look-up that the data plane asks (`DataplaneOptions.configuredMtu`). Calls that come together share one
 * run of `ip`, so that a snapshot of thousands of peers costs a few processes.
 *
 * The result is bytes of the outer packet, or undefined when there is no route, or none that leaves the host.
 */
export function configuredMtuReader(
  runner: Runner,
  now: () => number = () => performance.now(),
): (underlay: Address) => Promise<number | undefined> {
  interface Waiting {
    readonly address: Address;
    readonly resolve: (mtu: number | undefined) => void;
  }
  let waiting: Waiting[] = [];
  let running = false;
  let links: { readonly at: number; readonly mtus: Promise<Map<string, number>> } | undefined;

  const linkMtus = (): Promise<Map<string, number>> => {
    if (links === undefined || now() - links.at > LINK_CACHE_MS) links = { at: now(), mtus: readLinkMtus(runner) };
    return links.mtus;
  };

  const resolveAll = async (batch: readonly Waiting[]): Promise<void> => {
    const [routes, mtus] = await Promise.all([
      readRoutes(
        runner,
        batch.map(({ address }) => address),
      ),
      linkMtus().catch(() => new Map<string, number>()),
    ]);
    batch.forEach(({ resolve }, index) => resolve(routeMtu(routes[index], mtus)));
  };

  const drain = async (): Promise<void> => {
    while (waiting.length > 0) {
      const batch = waiting.slice(0, BATCH);
      waiting = waiting.slice(BATCH);
      await resolveAll(batch);
    }
    running = false;
  };

  return (underlay) =>
    new Promise((resolve) => {
      waiting.push({ address: underlay, resolve });
      if (running) return;
      running = true;
      setImmediate(() => void drain());
    });
}

/** The FIB entry of each address, undefined where there is none. Never rejects. */
async function readRoutes(runner: Runner, addresses: readonly Address[]): Promise<unknown[]> {
  const commands = addresses.map((address) => `route get fibmatch ${address.toString()}`);
  try {
    const output = await runner('ip', ['-j', '-batch', '-'], { input: `${commands.join('\n')}\n` });
    const lines = output.split('\n').filter((line) => line.trim() !== '');
    // One answer a line, in order; they cannot be told apart otherwise, so the count must be right.
    if (lines.length === commands.length) return lines.map(firstEntry);
  } catch {
    // At least one address has no route: ask for each.
  }
  const routes: unknown[] = [];
  for (const address of addresses) {
    routes.push(
      await ipJson(runner, [`-${address.family}`, 'route', 'get', 'fibmatch', address.toString()]).then(
        ([route]) => route,
        () => undefined,
      ),
    );
  }
  return routes;
}

function firstEntry(line: string): unknown {
  try {
    const parsed: unknown = JSON.parse(line);
    return Array.isArray(parsed) ? parsed[0] : undefined;
  } catch {
    return undefined;
  }
}

function routeMtu(route: unknown, links: ReadonlyMap<string, number>): number | undefined {
  if (route === undefined || (textField(route, 'type') ?? 'unicast') !== 'unicast') return undefined;
  for (const metrics of listField(route, 'metrics')) {
    const mtu = numberField(metrics, 'mtu');
    if (mtu !== undefined && mtu > 0) return mtu;
  }
  const devices = [route, ...listField(route, 'nexthops')].map((hop) => textField(hop, 'dev'));
  const mtus = devices.map((device) => links.get(device ?? '')).filter((mtu) => mtu !== undefined && mtu > 0);
  return mtus.length === 0 ? undefined : Math.min(...(mtus as number[]));
}

async function readLinkMtus(runner: Runner): Promise<Map<string, number>> {
  const mtus = new Map<string, number>();
  for (const entry of await ipJson(runner, ['link', 'show'])) {
    const name = textField(entry, 'ifname');
    const mtu = field(entry, 'mtu');
    if (name !== undefined && typeof mtu === 'number') mtus.set(name, mtu);
  }
  return mtus;
}
