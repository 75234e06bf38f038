/**
 * Kernel routes of the overlay: which ones are ours, which ones of ours are left over, which foreign ones collide.
 *
 * Every route that podwire adds carries the protocol number {@link ROUTE_PROTOCOL}, which iproute2's rt_protos does
 * not use. A route is ours when it carries that number and lies inside our network; foreign routes are never touched.
 */
import { PodwireError } from '../errors.js';
import { type Family, Prefix } from '../net/prefix.js';
import { ipBatch, ipJson, type Runner } from './exec.js';
import { listField, numberField, textField } from './interfaces.js';

/** rtm_protocol of podwire's routes (`ip route show proto 111`). */
export const ROUTE_PROTOCOL = 111;

/** Metric of the blackhole routes of own subnets, behind every route that a bridge brings (see firewall/blackhole.ts). */
export const BLACKHOLE_METRIC = 32_768;

export interface KernelRoute {
  readonly destination: Prefix;
  /** Empty for routes without a device (blackhole, unreachable). */
  readonly device: string;
  readonly gateway: string | undefined;
  readonly metric: number;
  readonly protocol: string;
  /** `unicast`, `blackhole`, … */
  readonly type: string;
  readonly onlink?: boolean;
  /** Preferred source address. */
  readonly source?: string;
  /** Bytes, where the route itself has one. */
  readonly mtu?: number;
}

const DEFAULT_ROUTE: Readonly<Record<Family, Prefix>> = { 4: Prefix.parse('0.0.0.0/0'), 6: Prefix.parse('::/0') };

/**
 * The main table of one family, one entry a route (a multipath route with its first device).
 *
 * @param protocol only routes with this rtm_protocol; the kernel then leaves the others out.
 * @throws {PodwireError} `COMMAND_FAILED`.
 */
export async function listRoutes(runner: Runner, family: Family, protocol?: number): Promise<KernelRoute[]> {
  const routes: KernelRoute[] = [];
  const filter = protocol === undefined ? [] : ['proto', String(protocol)];
  for (const entry of await ipJson(runner, ['-N', `-${family}`, 'route', 'show', 'table', 'main', ...filter])) {
    const text = textField(entry, 'dst') ?? '';
    const destination =
      text === 'default'
        ? DEFAULT_ROUTE[family]
        : Prefix.tryParse(text.includes('/') ? text : `${text}/${family === 4 ? 32 : 128}`);
    if (destination === undefined) continue;
    const hop = listField(entry, 'nexthops')[0];
    const source = textField(entry, 'prefsrc');
    const mtu = listField(entry, 'metrics')
      .map((metrics) => numberField(metrics, 'mtu'))
      .find((value) => value !== undefined);
    routes.push({
      destination,
      device: textField(entry, 'dev') ?? textField(hop, 'dev') ?? '',
      gateway: textField(entry, 'gateway') ?? textField(hop, 'gateway'),
      metric: numberField(entry, 'metric') ?? 0,
      // iproute2 prints the number, and nothing for "boot", the number of a plain `ip route add`, or for the one asked for.
      protocol: textField(entry, 'protocol') ?? String(protocol ?? 3),
      type: typeName(textField(entry, 'type') ?? 'unicast'),
      ...([...listField(entry, 'flags'), ...listField(hop, 'flags')].includes('onlink') ? { onlink: true } : {}),
      ...(source === undefined ? {} : { source }),
      ...(mtu === undefined ? {} : { mtu }),
    });
  }
  return routes;
}

/** A blackhole of an own subnet: the firewall keeps and removes those, nobody else. */
export function isOwnBlackhole(route: KernelRoute): boolean {
  return route.type === 'blackhole' && route.protocol === String(ROUTE_PROTOCOL) && route.metric === BLACKHOLE_METRIC;
}

/** With `-N` iproute2 prints the types as numbers too (rtnetlink.h, RTN_BLACKHOLE and on). */
function typeName(text: string): string {
  return { '6': 'blackhole', '7': 'unreachable', '8': 'prohibit', '9': 'throw' }[text] ?? text;
}

export interface RouteReview {
  /** Ours, left by an agent that is gone. */
  readonly stale: readonly KernelRoute[];
  /** Foreign, inside our network: they take packets away from the tunnel. Worth a warning, never touched. */
  readonly diverting: readonly KernelRoute[];
}

/**
 * Looks at the host's routes before the overlay is set up.
 *
 * @param network the pod network that gets one route to the TUN.
 * @param keep local subnets of this host inside `network`, whose (bridge) routes are expected.
 * @param tunDevices names of the TUN devices that exist: they belong to living processes, so do their routes.
 * @throws {PodwireError} `INTERFACE` when another device has a route for exactly this network at the metric that ours
 *   would get: the two cannot exist side by side, and flannel's tolerance of that sends every packet astray.
 */
export function reviewRoutes(
  routes: readonly KernelRoute[],
  network: Prefix,
  keep: readonly Prefix[],
  tunDevices: ReadonlySet<string>,
): RouteReview {
  const stale: KernelRoute[] = [];
  const diverting: KernelRoute[] = [];
  const ownMetric = network.family === 4 ? 0 : 1024;
  for (const route of routes) {
    if (!network.contains(route.destination) || isOwnBlackhole(route)) continue;
    const ours = route.protocol === String(ROUTE_PROTOCOL);
    if (ours && !tunDevices.has(route.device)) {
      stale.push(route);
    } else if (route.destination.equals(network) && route.metric === ownMetric) {
      throw new PodwireError(
        'INTERFACE',
        ours
          ? `another podwire agent already routes ${network.toString()} to ${route.device}: stop it first, or give this one its own network`
          : tunDevices.has(route.device)
            ? `${describeRoute(route)} belongs to a running program, flanneld perhaps: stop that first, or choose another Network`
            : `${describeRoute(route)} already takes the pod network: remove it (ip route del ${routeSelector(route)}) or choose another Network`,
      );
    } else if (
      route.destination.equals(network)
        ? route.metric < ownMetric
        : !keep.some((own) => own.contains(route.destination))
    ) {
      diverting.push(route);
    }
  }
  return { stale, diverting };
}

/**
 * Removes routes that {@link reviewRoutes} called stale.
 *
 * @throws {PodwireError} `COMMAND_FAILED` when one of them cannot be removed.
 */
export async function removeRoutes(runner: Runner, routes: readonly KernelRoute[]): Promise<void> {
  await ipBatch(
    runner,
    routes.map((route) => `route del ${routeSelector(route)} proto ${ROUTE_PROTOCOL}`),
  );
}

/** What `ip route del` needs to know the route by. */
export function routeSelector(route: KernelRoute): string {
  return [
    ...(route.type === 'unicast' ? [] : [route.type]),
    route.destination.toString(),
    ...(route.device === '' ? [] : ['dev', route.device]),
    ...(route.metric === 0 ? [] : ['metric', String(route.metric)]),
  ].join(' ');
}

/** `route 10.42.0.0/16 via 10.0.0.1 dev eth0`, for messages. */
export function describeRoute(route: KernelRoute): string {
  return [
    route.type === 'unicast' ? 'route' : `${route.type} route`,
    route.destination.toString(),
    ...(route.gateway === undefined ? [] : ['via', route.gateway]),
    ...(route.device === '' ? [] : ['dev', route.device]),
    ...(route.metric === 0 ? [] : ['metric', String(route.metric)]),
  ].join(' ');
}
