/**
 * From what is and what should be to the fewest changes. Pure: no process, no clock.
 */
import type { Family } from '../net/prefix.js';
import {
  type Change,
  defaultMetric,
  type DesiredAddress,
  type DesiredFdbEntry,
  type DesiredHost,
  type DesiredLink,
  type DesiredNeighbour,
  type DesiredRoute,
} from './desired.js';
import type { HostFacts, LinkFacts } from './host-facts.js';
import { describeRoute, type KernelRoute, ROUTE_PROTOCOL, routeSelector } from './routes.js';

/**
 * The changes in the order in which they must be made: links before what hangs on them, addresses before routes, and a
 * route between the setting of the neighbour and FDB entries that it will need and the removal of those that it needed
 * until now. New addresses come before old ones go, because the kernel drops a device's routes with its last address;
 * of routes removals come first.
 *
 * @param occupants foreign routes of the main table, by {@link routeKey}: what stands where a missing route belongs.
 */
export function differences(
  desired: DesiredHost,
  facts: HostFacts,
  occupants: ReadonlyMap<string, KernelRoute> = new Map(),
): Change[] {
  const { exclusive = [] } = desired;
  // A device that is made anew has nothing on it, whatever its predecessor had.
  const remade = new Set<string>();
  const links = (desired.links ?? []).flatMap((link) => linkChanges(link, facts.links.get(link.device), remade));
  const kept = (device: string): LinkFacts | undefined => (remade.has(device) ? undefined : facts.links.get(device));
  const there = { has: (device: string): boolean => remade.has(device) || facts.links.has(device) };
  const on = <T extends { readonly device: string }>(entries: readonly T[] = []): readonly T[] =>
    entries.filter(({ device }) => there.has(device));
  const ours = exclusive.filter((device) => there.has(device));
  const entries = [
    ...neighbourChanges(on(desired.neighbours), ours, facts, remade),
    ...fdbChanges(on(desired.fdb), ours, facts, remade),
  ];
  return [
    ...links,
    ...missingDevices(desired, there),
    ...addressChanges(on(desired.addresses), ours, kept),
    ...entries.filter(({ action }) => action !== 'remove'),
    ...routeChanges(desired, on(desired.routes), facts, remade, occupants),
    ...entries.filter(({ action }) => action === 'remove'),
  ];
}

/** One change that cannot be made for every device that is gone, in place of one for everything on it. */
function missingDevices(desired: DesiredHost, there: { has(device: string): boolean }): Change[] {
  const { links = [], addresses = [], routes = [], neighbours = [], fdb = [] } = desired;
  const named = new Set([...links, ...addresses, ...routes, ...neighbours, ...fdb].map(({ device }) => device));
  return [...named]
    .filter((device) => !there.has(device))
    .map((device) => ({
      kind: 'link',
      action: 'add',
      key: `link ${device}`,
      why: `device ${device} is gone`,
      tool: 'ip',
      command: undefined,
    }));
}

/** Two routes with the same key cannot exist side by side in IPv4's main table. */
export function routeKey(route: Pick<DesiredRoute, 'destination' | 'metric'>): string {
  return `${route.destination.toString()} ${route.metric ?? defaultMetric(route.destination.family)}`;
}

/** Families in which a desired route has no route of ours in its place, so that {@link differences} needs the occupants. */
export function familiesWithGaps(desired: DesiredHost, facts: HostFacts): Family[] {
  const ours = new Set(facts.routes.map(routeKey));
  const gaps = (desired.routes ?? []).filter((route) => !ours.has(routeKey(route)));
  return [...new Set(gaps.map(({ destination }) => destination.family))];
}

/** The kernel drops routes, neighbours and addresses when a link changes: each change of one is blunt. */
function linkChanges(link: DesiredLink, found: LinkFacts | undefined, remade: Set<string>): Change[] {
  const { device, create } = link;
  const changes: Change[] = [];
  const change = (part: string, action: Change['action'], why: string, command: string | undefined): void => {
    changes.push({ kind: 'link', action, key: `link ${device}${part}`, why, tool: 'ip', command, isBlunt: true });
  };
  if (found === undefined && create === undefined) return changes;
  const isWrong = found !== undefined && create?.matches !== undefined && !create.matches(found.entry);
  if (create !== undefined && (found === undefined || isWrong)) {
    if (isWrong) change('', 'remove', `device ${device} is another than it should be`, `link del dev ${device}`);
    change('', 'add', `device ${device} was missing`, create.command);
    remade.add(device);
  }
  const was = remade.has(device) ? undefined : found;
  if (link.mac !== undefined && was?.mac !== link.mac) {
    change(' mac', 'change', wasNot('MAC', device, was?.mac, link.mac), `link set dev ${device} address ${link.mac}`);
  }
  if (link.mtu !== undefined && was?.mtu !== link.mtu) {
    change(' mtu', 'change', wasNot('mtu', device, was?.mtu, link.mtu), `link set dev ${device} mtu ${link.mtu}`);
  }
  if (link.up === true && was?.up !== true) {
    change(' state', 'change', `${device} was down`, `link set dev ${device} up`);
  }
  return changes;
}

function wasNot(what: string, device: string, was: string | number | undefined, wanted: string | number): string {
  return was === undefined
    ? `${what} of ${device} is to be ${wanted}`
    : `${what} of ${device} was ${was}, not ${wanted}`;
}

/** Blunt too: with a device's last address go its routes. */
function addressChanges(
  desired: readonly DesiredAddress[],
  exclusive: readonly string[],
  kept: (device: string) => LinkFacts | undefined,
): Change[] {
  const wanted = new Map<string, Set<string>>(exclusive.map((device) => [device, new Set<string>()]));
  for (const { device, address, length } of desired) {
    const text = `${address.toString()}/${length}`;
    const known = wanted.get(device);
    if (known === undefined) wanted.set(device, new Set([text]));
    else known.add(text);
  }
  const removals: Change[] = [];
  const additions: Change[] = [];
  for (const [device, texts] of wanted) {
    const found = kept(device)?.addresses ?? new Set();
    const change = (action: 'add' | 'remove', text: string, why: string): Change => ({
      kind: 'address',
      action,
      key: `address ${text} dev ${device}`,
      why,
      tool: 'ip',
      isBlunt: true,
      command: `address ${action === 'add' ? 'replace' : 'del'} ${text} dev ${device}${action === 'add' && text.includes(':') ? ' nodad' : ''}`,
    });
    for (const text of texts) {
      if (!found.has(text)) additions.push(change('add', text, `address ${text} of ${device} was missing`));
    }
    if (!exclusive.includes(device)) continue;
    for (const text of found) {
      if (!texts.has(text)) removals.push(change('remove', text, `address ${text} of ${device} is not to be there`));
    }
  }
  return [...additions, ...removals];
}

/** @param routes the desired ones whose device is there. */
function routeChanges(
  desired: DesiredHost,
  routes: readonly DesiredRoute[],
  facts: HostFacts,
  remade: ReadonlySet<string>,
  occupants: ReadonlyMap<string, KernelRoute>,
): Change[] {
  const devices = new Set([...(desired.links ?? []), ...routes].map(({ device }) => device));
  const owns = desired.ownsRoute ?? ((route) => devices.has(route.device));
  const ours = new Map<string, KernelRoute[]>();
  const others = new Map(occupants);
  for (const route of facts.routes) {
    const key = routeKey(route);
    if (remade.has(route.device)) continue;
    if (!owns(route)) {
      others.set(key, route);
      continue;
    }
    const same = ours.get(key);
    if (same === undefined) ours.set(key, [route]);
    else same.push(route);
  }
  const removals: Change[] = [];
  const settings: Change[] = [];
  const seen = new Set<string>();
  for (const route of routes) {
    const key = routeKey(route);
    if (seen.has(key)) continue;
    seen.add(key);
    const found = ours.get(key) ?? [];
    const right = found.find((candidate) => sameRoute(route, candidate));
    for (const extra of found) {
      // A wrong one in the only place is overwritten in one step; the rest of several must go. The kernel removes the
      // first that matches, which may be the right one.
      if (extra !== right && (right !== undefined || extra !== found[0])) {
        removals.push({ ...removal(extra), isBlunt: true });
      }
    }
    if (right === undefined) settings.push(setting(route, found[0], others.get(key), desired.mayDisplace));
  }
  for (const [key, found] of ours) if (!seen.has(key)) removals.push(...found.map(removal));
  return [...removals, ...settings];
}

function sameRoute(route: DesiredRoute, found: KernelRoute): boolean {
  return (
    found.type === 'unicast' &&
    found.device === route.device &&
    found.gateway === route.gateway?.toString() &&
    (found.onlink ?? false) === (route.onlink ?? false) &&
    (route.source === undefined || found.source === route.source.toString()) &&
    (route.mtu === undefined || found.mtu === route.mtu)
  );
}

function setting(
  route: DesiredRoute,
  wrong: KernelRoute | undefined,
  occupant: KernelRoute | undefined,
  mayDisplace: DesiredHost['mayDisplace'],
): Change {
  const text = route.destination.toString();
  const base = { kind: 'route', key: `route ${routeKey(route)}`, tool: 'ip' } as const;
  if (wrong !== undefined) {
    const why = `route ${text} was wrong: ${describeRoute(wrong)}`;
    return { ...base, action: 'change', why, command: routeCommand('replace', route) };
  }
  if (occupant === undefined) {
    return { ...base, action: 'add', why: `route ${text} was missing`, command: routeCommand('add', route) };
  }
  if (mayDisplace?.(occupant) === true) {
    const why = `route ${text} was replaced by another: ${describeRoute(occupant)}`;
    return { ...base, action: 'change', why, command: routeCommand('replace', route) };
  }
  const why = `${describeRoute(occupant)} stands in the place of ours: remove it (ip route del ${routeSelector(occupant)})`;
  return { ...base, action: 'add', why, command: undefined };
}

function removal(route: KernelRoute): Change {
  return {
    kind: 'route',
    action: 'remove',
    key: `route ${routeKey(route)} dev ${route.device}`,
    why: `${describeRoute(route)} is not to be there`,
    tool: 'ip',
    command: `route del ${routeSelector(route)} proto ${ROUTE_PROTOCOL}`,
  };
}

/** `ip` command that sets a route of ours. */
export function routeCommand(verb: 'add' | 'replace', route: DesiredRoute): string {
  return [
    `route ${verb} ${route.destination.toString()}`,
    ...(route.gateway === undefined ? [] : [`via ${route.gateway.toString()}`]),
    `dev ${route.device} proto ${ROUTE_PROTOCOL}`,
    // Scope global, as flannel's: the kernel's own choice for a route without gateway is link.
    ...(route.destination.family === 4 && route.gateway === undefined ? ['scope global'] : []),
    ...(route.metric === undefined ? [] : [`metric ${route.metric}`]),
    ...(route.source === undefined ? [] : [`src ${route.source.toString()}`]),
    ...(route.mtu === undefined ? [] : [`mtu ${route.mtu}`]),
    ...(route.onlink === true ? ['onlink'] : []),
  ].join(' ');
}

function neighbourChanges(
  desired: readonly DesiredNeighbour[],
  exclusive: readonly string[],
  facts: HostFacts,
  remade: ReadonlySet<string>,
): Change[] {
  const wanted = byDevice(desired, exclusive, ({ address }) => address.toString());
  const removals: Change[] = [];
  const settings: Change[] = [];
  for (const [device, entries] of wanted) {
    const found = (remade.has(device) ? undefined : facts.neighbours.get(device)) ?? new Map<string, string>();
    const base = (address: string) =>
      ({ kind: 'neighbour', key: `neighbour ${address} dev ${device}`, tool: 'ip' }) as const;
    for (const [address, { mac }] of entries) {
      const was = found.get(address);
      if (was === mac) continue;
      settings.push({
        ...base(address),
        action: was === undefined ? 'add' : 'change',
        why:
          was === undefined
            ? `neighbour ${address} of ${device} was missing`
            : `neighbour ${address} of ${device} was ${was}, not ${mac}`,
        command: `neigh replace ${address} lladdr ${mac} dev ${device} nud permanent`,
      });
    }
    if (!exclusive.includes(device)) continue;
    for (const address of found.keys()) {
      if (entries.has(address)) continue;
      const why = `neighbour ${address} of ${device} is not to be there`;
      removals.push({ ...base(address), action: 'remove', why, command: `neigh del ${address} dev ${device}` });
    }
  }
  return [...removals, ...settings];
}

function fdbChanges(
  desired: readonly DesiredFdbEntry[],
  exclusive: readonly string[],
  facts: HostFacts,
  remade: ReadonlySet<string>,
): Change[] {
  const wanted = byDevice(desired, exclusive, ({ mac }) => mac);
  const removals: Change[] = [];
  const settings: Change[] = [];
  for (const [device, entries] of wanted) {
    const found = (remade.has(device) ? undefined : facts.fdb.get(device)) ?? new Map<string, readonly string[]>();
    const base = (mac: string) => ({ kind: 'fdb', key: `fdb ${mac} dev ${device}`, tool: 'bridge' }) as const;
    const remove = (mac: string, remote: string): void => {
      const why = `FDB entry ${mac} of ${device} to ${remote} is not to be there`;
      const command = `fdb del ${mac} dev ${device} dst ${remote} self permanent`;
      removals.push({ ...base(mac), action: 'remove', why, command });
    };
    for (const [mac, entry] of entries) {
      const remote = entry.remote.toString();
      const was = found.get(mac) ?? [];
      const isThere = was.includes(remote);
      // `fdb replace` overwrites the first remote of a MAC; further ones must go.
      const extra = isThere ? was.filter((other) => other !== remote) : was.slice(1);
      for (const other of extra) remove(mac, other);
      if (isThere) continue;
      settings.push({
        ...base(mac),
        action: was.length === 0 ? 'add' : 'change',
        why:
          was.length === 0
            ? `FDB entry ${mac} of ${device} was missing`
            : `FDB entry ${mac} of ${device} led to ${was[0]}, not ${remote}`,
        command: `fdb replace ${mac} dev ${device} dst ${remote} self permanent`,
      });
    }
    if (!exclusive.includes(device)) continue;
    for (const [mac, remotes] of found) {
      // The entry of the zero MAC is the device's default destination, a property of the link.
      if (entries.has(mac) || mac === '00:00:00:00:00:00') continue;
      for (const remote of remotes) remove(mac, remote);
    }
  }
  return [...removals, ...settings];
}

function byDevice<T extends { readonly device: string }>(
  entries: readonly T[],
  exclusive: readonly string[],
  keyOf: (entry: T) => string,
): Map<string, Map<string, T>> {
  const devices = new Map<string, Map<string, T>>(exclusive.map((device) => [device, new Map<string, T>()]));
  for (const entry of entries) {
    let found = devices.get(entry.device);
    if (found === undefined) devices.set(entry.device, (found = new Map<string, T>()));
    const key = keyOf(entry);
    if (!found.has(key)) found.set(key, entry);
  }
  return devices;
}
