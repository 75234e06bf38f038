import { setTimeout as sleep } from 'node:timers/promises';
import { Address, Prefix } from '../../src/net/prefix.js';
import type { NodeStatus, Overlay, OverlayNode } from '../../src/cli/lab/overlay.js';
import type { HostPlace } from '../../src/cli/lab/topology.js';
import { ok } from './process.js';

interface Member {
  /** How often its status was asked. */
  polls: number;
  readonly place: HostPlace;
  readonly subnet: Prefix;
}

/**
 * - `nat` rewrites the sources of what leaves a host.
 * - `mtu` refuses packets of the announced MTU.
 * - `hops` claims that another worker carried the packets each time.
 * - `sticky` never withdraws a route.
 */
export type Fault = 'nat' | 'mtu' | 'hops' | 'sticky';

/**
 * Plain kernel routes in the agents' place: proves the lab's topology and checks without podwire, and with `faults`
 * that the checks notice what they are for. What podwire would count is taken from the hosts' interfaces.
 */
export class RoutesOverlay implements Overlay {
  readonly description = 'kernel routes';
  readonly traits = { families: [4 as const], isKernel: false, answersUnreachable: true };
  readonly #faults: ReadonlySet<Fault>;
  readonly #members: Member[] = [];

  constructor(faults: readonly Fault[] = []) {
    this.#faults = new Set(faults);
  }

  async join(place: HostPlace): Promise<OverlayNode> {
    const subnet = Prefix.parse(`10.42.${String(place.number)}.0/24`);
    const gateway = Address.parse(`10.42.${String(place.number)}.1`);
    const self: Member = { place, subnet, polls: 0 };
    await ok('ip', ['-n', place.netns, 'route', 'add', 'unreachable', '10.42.0.0/16']);
    if (this.#faults.has('nat')) {
      const rule = ['-t', 'nat', '-A', 'POSTROUTING', '-o', 'eth0', '-j', 'MASQUERADE'];
      await ok('ip', ['netns', 'exec', place.netns, 'iptables', ...rule]);
    }
    for (const other of this.#members) {
      await this.#route('replace', self, other);
      await this.#route('replace', other, self);
    }
    this.#members.push(self);
    const leave = async (): Promise<void> => {
      const index = this.#members.indexOf(self);
      if (index === -1) return;
      this.#members.splice(index, 1);
      if (this.#faults.has('sticky')) return;
      for (const other of this.#members) await this.#route('delete', other, self).catch(() => {});
    };
    return {
      subnet,
      gateways: [{ address: gateway, length: 24 }],
      mtu: 1472,
      hints: [],
      failed: new Promise<never>(() => {}),
      status: async () => await this.#status(self),
      leave,
      [Symbol.asyncDispose]: leave,
    };
  }

  async #route(verb: 'replace' | 'delete', at: Member, to: Member): Promise<void> {
    const mtu = verb === 'delete' ? [] : ['mtu', this.#faults.has('mtu') ? '1400' : '1472'];
    const route = [verb, to.subnet.toString(), 'via', to.place.address.toString(), ...mtu];
    await ok('ip', ['-n', at.place.netns, 'route', ...route]);
  }

  async #status(self: Member): Promise<NodeStatus> {
    // Answers as an agent does, a moment later.
    await sleep(1);
    const text = await ok('ip', ['-n', self.place.netns, '-j', '-s', 'link', 'show', 'dev', 'eth0']);
    const [link] = JSON.parse(text) as [
      { stats64: { rx: { packets: number; bytes: number }; tx: { packets: number } } },
    ];
    const { rx, tx } = link.stats64;
    const routes = await ok('ip', ['-n', self.place.netns, 'route', 'show']);
    const counters = { egressPackets: tx.packets, ingressPackets: rx.packets, ingressBytes: rx.bytes, dropNoRoute: 0 };
    const idle = { egressPackets: 0, ingressPackets: 0 };
    self.polls += 1;
    const hopping = this.#faults.has('hops') && self.polls % 2 === 0;
    return {
      routed: [...routes.matchAll(/^(\S+) via /gm)].map((match) => match[1] ?? ''),
      totals: counters,
      workers: hopping ? [idle, counters] : [counters, idle],
    };
  }
}
