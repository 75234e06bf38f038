/** The changes that differences() asks for, carried out by a plain model of the kernel. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { Change, DesiredHost } from '../../../src/host/desired.js';
import { differences, familiesWithGaps, routeKey } from '../../../src/host/differences.js';
import type { KernelRoute } from '../../../src/host/routes.js';
import { Address, Prefix } from '../../../src/net/prefix.js';
import { ModelKernel } from './model.js';

const DEVICES = ['flannel.1', 'eth0', 'cni0'];
const device = fc.constantFrom(...DEVICES);
const small = fc.integer({ min: 0, max: 5 });
const mac = small.map((n) => `02:00:00:00:00:0${n}`);
const address = small.map((n) => Address.parse(`10.42.${n}.0`));
const remote = small.map((n) => Address.parse(`192.0.2.${n}`));
const destination = fc
  .tuple(small, fc.boolean())
  .map(([n, six]) => Prefix.parse(six ? `fd42:0:0:${n}::/64` : `10.42.${n}.0/24`));

const desiredRoute = fc.record(
  { destination, device, gateway: remote, onlink: fc.boolean(), metric: fc.constantFrom(10, 20) },
  { requiredKeys: ['destination', 'device'] },
);
const link = fc.record(
  {
    device,
    up: fc.constant(true as const),
    mtu: fc.constantFrom(1400, 1450),
    mac,
    create: fc.constant({ command: '' }),
  },
  { requiredKeys: ['device'] },
);
const desiredHost = fc
  .record({
    links: fc.uniqueArray(link, { selector: (entry) => entry.device }),
    addresses: fc.array(fc.record({ device, address, length: fc.constant(32) })),
    routes: fc.array(desiredRoute),
    neighbours: fc.array(fc.record({ device, address, mac })),
    fdb: fc.array(fc.record({ device, mac, remote })),
    exclusive: fc.uniqueArray(device),
  })
  .map(({ links, ...rest }): DesiredHost => ({
    families: [4, 6],
    ...rest,
    links: links.map(({ create, ...entry }) => ({
      ...entry,
      ...(create === undefined ? {} : { create: { command: `link add ${entry.device}` } }),
    })),
  }));

const kernelRoute = fc
  .record({
    destination,
    device,
    gateway: fc.option(
      remote.map((r) => r.toString()),
      { nil: undefined },
    ),
    metric: fc.constantFrom(0, 10, 20),
    protocol: fc.constantFrom('111', '111', '3', 'static'),
    type: fc.constant('unicast'),
  })
  .map((route): KernelRoute => ({
    ...route,
    metric: route.metric === 0 && route.destination.family === 6 ? 1024 : route.metric,
  }));
const kernel = fc
  .record({
    links: fc.uniqueArray(
      fc.record({
        name: device,
        up: fc.boolean(),
        mtu: fc.constantFrom(1400, 1500),
        mac,
        addresses: fc.array(address.map((a) => `${a.toString()}/32`)),
        neighbours: fc.array(fc.tuple(address.map(String), mac)),
        fdb: fc.array(fc.tuple(mac, remote.map(String))),
      }),
      { selector: ({ name }) => name },
    ),
    routes: fc.uniqueArray(kernelRoute, { selector: routeKey }),
  })
  .map(({ links, routes }) => {
    const model = new ModelKernel();
    for (const { name, up, mtu, mac: own, addresses, neighbours, fdb } of links) {
      const state = { addresses: new Set(addresses), neighbours: new Map(neighbours), fdb: new Map(fdb) };
      model.links.set(name, { up, mtu, mac: own, ...state });
    }
    model.routes = routes.filter((route) => model.links.has(route.device));
    return model;
  });

const changesOf = (desired: DesiredHost, model: ModelKernel) => {
  const gaps = familiesWithGaps(desired, model.facts);
  const occupants = model.routes.filter(
    ({ protocol, destination: to }) => protocol !== '111' && gaps.includes(to.family),
  );
  return differences(desired, model.facts, new Map(occupants.map((route) => [routeKey(route), route])));
};

describe('differences', () => {
  it('are commands that the kernel takes, after which nothing is left to do; foreign routes stay', () => {
    fc.assert(
      fc.property(desiredHost, kernel, (desired, model) => {
        const foreign = model.foreign;
        const changes = changesOf(desired, model);
        for (const change of changes) if (change.command !== undefined) model.apply(change);
        // What cannot be done now cannot be done later, and there is nothing else.
        expect(changesOf(desired, model).filter(({ command }) => command !== undefined)).toEqual([]);
        // A device that is made anew takes its foreign routes along.
        expect(foreign.filter((route) => !model.foreign.includes(route))).toEqual([]);
      }),
      { numRuns: 500 },
    );
  });

  it('leave every desired thing in the kernel, and nothing else on exclusive devices', () => {
    fc.assert(
      fc.property(desiredHost, kernel, (desired, model) => {
        for (const change of changesOf(desired, model)) if (change.command !== undefined) model.apply(change);
        const { links = [], addresses = [], neighbours = [], fdb = [], routes = [], exclusive = [] } = desired;
        for (const wanted of links) {
          const found = model.links.get(wanted.device);
          if (wanted.create !== undefined) expect(found).toBeDefined();
          if (found === undefined) continue;
          if (wanted.up === true) expect(found.up).toBe(true);
          if (wanted.mtu !== undefined) expect(found.mtu).toBe(wanted.mtu);
          if (wanted.mac !== undefined) expect(found.mac).toBe(wanted.mac);
        }
        const first = <T>(list: readonly T[], key: (entry: T) => string): T[] =>
          list.filter((entry, at) => list.findIndex((other) => key(other) === key(entry)) === at);
        for (const name of model.links.keys()) {
          const on = <T extends { readonly device: string }>(list: readonly T[]): T[] =>
            list.filter((entry) => entry.device === name);
          const found = model.links.get(name)!;
          const wantedAddresses = on(addresses).map((entry) => `${entry.address.toString()}/32`);
          const wantedNeighbours = first(on(neighbours), (entry) => entry.address.toString());
          const wantedFdb = first(on(fdb), (entry) => entry.mac);
          for (const text of wantedAddresses) expect(found.addresses.has(text)).toBe(true);
          for (const entry of wantedNeighbours) expect(found.neighbours.get(entry.address.toString())).toBe(entry.mac);
          for (const entry of wantedFdb) expect(found.fdb.get(entry.mac)).toBe(entry.remote.toString());
          if (!exclusive.includes(name)) continue;
          expect(found.addresses.size).toBe(new Set(wantedAddresses).size);
          expect(found.neighbours.size).toBe(wantedNeighbours.length);
          expect([...found.fdb.keys()].filter((own) => own !== '00:00:00:00:00:00').length).toBe(wantedFdb.length);
        }
        const named = new Set([...links, ...routes].map((entry) => entry.device));
        const ours = model.routes.filter((route) => route.protocol === '111' && named.has(route.device));
        for (const route of ours) {
          const wanted = routes.find((entry) => routeKey(entry) === routeKey(route) && model.links.has(entry.device));
          expect([route.device, route.gateway]).toEqual([wanted?.device, wanted?.gateway?.toString()]);
        }
      }),
      { numRuns: 500 },
    );
  });

  it('are none for a state that is as it should be, and only the one thing for one thing that is not', () => {
    fc.assert(
      fc.property(desiredHost, kernel, fc.nat(), (desired, model, seed) => {
        const apply = (): number => {
          const changes = changesOf(desired, model).filter(({ command }) => command !== undefined);
          for (const change of changes) model.apply(change);
          return changes.length;
        };
        apply();
        const ours = model.routes.filter(({ protocol, device: on }) => protocol === '111' && DEVICES.includes(on));
        const wanted = ours.filter((route) =>
          // One on another device is what stands there because the wanted device is gone.
          (desired.routes ?? []).some((entry) => routeKey(entry) === routeKey(route) && entry.device === route.device),
        );
        if (wanted.length === 0) return;
        const gone = wanted[seed % wanted.length]!;
        model.routes.splice(model.routes.indexOf(gone), 1);
        expect(apply()).toBe(1);
      }),
      { numRuns: 300 },
    );
  });

  it('set routes after the neighbours and FDB entries that they need, and remove those that they needed last', () => {
    fc.assert(
      fc.property(desiredHost, kernel, (desired, model) => {
        const stage = ({ kind, action }: Change): number =>
          kind === 'link' || kind === 'address' ? 0 : kind === 'route' ? 2 : action === 'remove' ? 3 : 1;
        const stages = changesOf(desired, model).map(stage);
        expect(stages).toEqual(stages.toSorted((a, b) => a - b));
      }),
      { numRuns: 300 },
    );
  });
});
