/**
 * Several hosts on one simulated underlay, with leases that come, go and move while pods talk, and with every host's
 * view of them late by its own measure. Every delivered packet is held against what was sent and against who held the
 * address when the decision was taken; every packet must end somewhere that is counted. The seed decides everything.
 */
import { Address } from '../../src/net/prefix.js';
import { COUNTER_NAMES, MemoryNetwork, MemoryPort, VirtualHost, packet, seededRandom } from '../../src/testing.js';
import type { MemoryNetworkOptions, PacketFields } from '../../src/testing.js';
import { pick } from '../support/random.js';
import type { Engine } from './overlay-accounts.js';
import { discrepancies } from './overlay-accounts.js';
import type { Knowledge, Leases, Receiver, Sent } from './overlay-packets.js';
import { NOBODYS, judge, payload, prefix4, prefix6 } from './overlay-packets.js';

interface SimulatedHost extends Receiver {
  readonly address: string;
  engine: VirtualHost<MemoryPort>;
  /** Own subnets: known at once, unlike the others'. */
  readonly own: Set<number>;
  /** Version of the leases that this host knows. */
  version: number;
  decided: Knowledge;
  injected: number;
  refused: number;
}

export interface SimulationOptions extends Omit<MemoryNetworkOptions, 'seed'> {
  readonly seed: number;
  readonly hosts: number;
  readonly steps: number;
  /** Share of steps in which a lease changes hands, a host joins or one leaves. */
  readonly churn: number;
  /** Share of packets with a forged inner source, and of steps in which a stranger sends. */
  readonly forged: number;
}

export interface Outcome {
  readonly sent: number;
  readonly delivered: number;
  readonly answered: number;
  readonly fragments: number;
  readonly changes: number;
  readonly counters: Readonly<Record<string, number>>;
}

const PORT = 8285;
const STRANGER = Address.parse('203.0.113.66');
const OVERHEAD = 28;
/** Inner bytes of a packet that some paths do not carry; every such path cuts it into two. */
const BIG = 1400;
const PATH_MTUS = [1500, 1500, 1428, 1400, 1300, 1200];

export class OverlaySimulation {
  readonly network: MemoryNetwork;
  readonly #options: SimulationOptions;
  readonly #random: () => number;
  readonly #hosts: SimulatedHost[] = [];
  readonly #present = new Set<number>();
  /** Every state of the leases so far; hosts know one of them. */
  readonly #history: Leases[] = [new Map()];
  /** A subnet that was given up and is not yet anybody's: its next holder. */
  readonly #moving = new Map<number, number>();
  readonly #sent: Sent[] = [];
  /** Engines of hosts that left, with what they had injected: their counters still have to balance. */
  readonly #gone: Engine[] = [];
  #strangers = 0;
  #delivered = 0;
  #answered = 0;
  /** Deliveries by packet, of the last round only. */
  #arrivals = new Map<number, number>();

  constructor(options: SimulationOptions) {
    this.#options = options;
    this.#random = seededRandom(options.seed);
    this.network = new MemoryNetwork(options);
    for (let i = 0; i < options.hosts; i++) this.#hosts.push(this.#makeHost(i));
    for (const host of this.#hosts) this.#acquire(host.index, host.index);
    for (const host of this.#hosts) this.#present.add(host.index);
  }

  /** Runs all steps, then lets everything settle and checks that every pair of hosts can talk. */
  run(): Outcome {
    const { steps, churn } = this.#options;
    for (let step = 0; step < steps; step++) {
      if (this.#random() < churn) this.#change();
      this.#finishMoves();
      for (const host of this.#hosts) if (this.#random() < 0.2) this.#learn(host);
      for (const host of this.#hosts) if (this.#present.has(host.index)) this.#traffic(host);
      if (this.#random() < this.#options.forged) this.#strangerSends();
      this.#poll();
      this.network.advance();
    }
    this.#settle();
    this.#everybodyTalks();
    this.#balance();
    return this.#outcome();
  }

  #int(below: number): number {
    return Math.floor(this.#random() * below);
  }

  #leases(): Leases {
    return this.#history.at(-1)!;
  }

  #makeHost(index: number): SimulatedHost {
    const address = `192.0.2.${index + 1}`;
    return {
      index,
      address,
      engine: this.#makeEngine(address),
      own: new Set(),
      version: 0,
      decided: { own: new Set(), leases: new Map() },
      injected: 0,
      refused: 0,
    };
  }

  #makeEngine(address: string): VirtualHost<MemoryPort> {
    return new VirtualHost({
      local: [],
      ownAddresses: [address],
      now: () => this.network.now + 1,
      openPort: ({ memory, nextHops, reader }) =>
        new MemoryPort(
          { network: this.network, bind: { address, port: PORT }, memory, counterNames: COUNTER_NAMES, tunQueue: 64 },
          nextHops,
          reader,
        ),
    });
  }

  #publish(change: (leases: Map<number, number>) => void): void {
    const leases = new Map(this.#leases());
    change(leases);
    this.#history.push(leases);
  }

  #acquire(index: number, subnet: number): void {
    const host = this.#hosts[index]!;
    host.own.add(subnet);
    this.#setLocal(host);
    this.#publish((leases) => leases.set(subnet, index));
  }

  #setLocal(host: SimulatedHost): void {
    const prefixes = [...host.own].flatMap((subnet) => [prefix4(subnet), prefix6(subnet)]);
    host.engine.fib.setLocal(prefixes, [host.address]);
  }

  #change(): void {
    const kind = this.#random();
    const host = pick(this.#random, this.#hosts);
    if (!this.#present.has(host.index)) this.#join(host);
    else if (kind < 0.25 && this.#present.size > 2) this.#leave(host);
    else if (kind < 0.7) this.#move();
    else if (host.own.size < 4) this.#acquire(host.index, this.#freeSubnet());
  }

  #freeSubnet(): number {
    let subnet = this.#int(200);
    while (this.#leases().has(subnet) || this.#moving.has(subnet)) subnet = (subnet + 1) % 200;
    return subnet;
  }

  #join(host: SimulatedHost): void {
    host.engine = this.#makeEngine(host.address);
    host.version = 0;
    host.decided = { own: new Set(), leases: new Map() };
    host.injected = 0;
    this.#present.add(host.index);
    this.#acquire(host.index, this.#freeSubnet());
  }

  /** A host that leaves takes its queues along; what it has not sent by then was never sent. */
  #leave(host: SimulatedHost): void {
    this.#drain(host);
    host.engine.close();
    this.#gone.push({ engine: host.engine, injected: host.injected });
    this.#present.delete(host.index);
    for (const subnet of host.own) this.#publish((leases) => leases.delete(subnet));
    host.own.clear();
  }

  /** The old holder gives a subnet up before the new one has it: nobody shares an address for a moment. */
  #move(): void {
    const held = [...this.#leases()].filter(([, index]) => this.#present.has(index));
    if (held.length === 0) return;
    const [subnet, from] = pick(this.#random, held);
    const to = pick(this.#random, [...this.#present]);
    if (from === to) return;
    const host = this.#hosts[from]!;
    host.own.delete(subnet);
    this.#setLocal(host);
    this.#publish((leases) => leases.delete(subnet));
    this.#moving.set(subnet, to);
  }

  #finishMoves(): void {
    for (const [subnet, to] of this.#moving) {
      if (this.#random() < 0.5) continue;
      this.#moving.delete(subnet);
      if (this.#present.has(to)) this.#acquire(to, subnet);
    }
  }

  /** A host learns the leases of some later time, at once or change by change. */
  #learn(host: SimulatedHost, to = host.version + this.#int(this.#history.length - host.version)): void {
    if (!this.#present.has(host.index)) return;
    const [before, after] = [this.#history[host.version]!, this.#history[to]!];
    host.version = to;
    const { fib } = host.engine;
    const others = [...after].filter(([, index]) => index !== host.index);
    if (this.#random() < 0.5) {
      fib.replace(
        others.flatMap(([subnet, index]) => {
          const nextHop = this.#nextHop(host.index, index);
          return [[prefix4(subnet), nextHop] as const, [prefix6(subnet), nextHop] as const];
        }),
      );
      return;
    }
    for (const subnet of before.keys()) {
      const index = after.get(subnet);
      if (index !== undefined && index !== host.index) continue;
      fib.delete(prefix4(subnet));
      fib.delete(prefix6(subnet));
    }
    for (const [subnet, index] of others) {
      fib.set(prefix4(subnet), this.#nextHop(host.index, index));
      fib.set(prefix6(subnet), this.#nextHop(host.index, index));
    }
  }

  #nextHop(from: number, to: number): { address: string; mtu: number } {
    return { address: this.#hosts[to]!.address, mtu: PATH_MTUS[(from * 7 + to * 3) % PATH_MTUS.length]! };
  }

  #traffic(host: SimulatedHost): void {
    for (let count = this.#int(6); count > 0; count--) {
      const forged = this.#random() < this.#options.forged;
      const subnets = forged ? [...this.#leases().keys(), 250] : [...host.own];
      if (subnets.length === 0) return;
      const known = [...this.#history[host.version]!.keys(), ...this.#leases().keys(), 240];
      this.#inject(host, pick(this.#random, subnets), pick(this.#random, known));
    }
  }

  #inject(host: SimulatedHost, from: number, to: number): number {
    const id = this.#sent.length;
    const four = this.#random() < 0.6;
    const big = this.#random() < 0.2;
    const dontFragment = this.#random() < 0.5;
    const header = four ? 28 : 48;
    const size = big ? BIG : header + 8 + this.#int(300);
    const fields: PacketFields = {
      source: four ? `10.1.${from}.${1 + this.#int(250)}` : `fd00:1:${from.toString(16)}::${1 + this.#int(250)}`,
      destination: four ? `10.1.${to}.${1 + this.#int(250)}` : `fd00:1:${to.toString(16)}::${1 + this.#int(250)}`,
      kind: 'udp',
      sourcePort: 1000 + this.#int(3),
      id,
      dontFragment,
      payload: payload(id, size - header),
    };
    const bytes = packet(fields);
    this.#sent.push({ bytes, host: host.index });
    if (host.engine.port.inject(bytes)) host.injected++;
    else host.refused++;
    return id;
  }

  /** Somebody without a lease sends packets that look right, and rubbish. */
  #strangerSends(): void {
    const target = pick(this.#random, this.#hosts);
    const subnet = pick(this.#random, [...target.own, 7]);
    const genuine = packet({
      source: '10.1.3.3',
      destination: `10.1.${subnet}.1`,
      kind: 'udp',
      payload: payload(NOBODYS, 40),
    });
    const bytes = this.#random() < 0.5 ? genuine : genuine.subarray(0, this.#int(genuine.length));
    this.#strangers++;
    this.network.send({ address: STRANGER, port: 1 }, target.engine.port.endpoint, bytes);
  }

  #poll(): void {
    for (const host of this.#hosts) if (this.#present.has(host.index)) this.#pollHost(host);
  }

  #pollHost(host: SimulatedHost): number {
    const rows = host.engine.poll(1);
    for (const bytes of host.engine.port.take()) this.#check(host, bytes);
    host.decided = { own: new Set(host.own), leases: this.#history[host.version]! };
    return rows;
  }

  #drain(host: SimulatedHost): void {
    while (this.#pollHost(host) > 0 || host.engine.port.waiting > 0);
  }

  #check(host: SimulatedHost, bytes: Uint8Array): void {
    const verdict = judge(bytes, host, this.#sent, (this.#options.corruption ?? 0) > 0);
    if (typeof verdict === 'string') throw this.#error(`host ${host.index}: ${verdict}`, bytes);
    if (verdict.answer) {
      this.#answered++;
      return;
    }
    this.#delivered++;
    this.#arrivals.set(verdict.id, (this.#arrivals.get(verdict.id) ?? 0) + 1);
  }

  /** No more changes and no more faults: everybody learns everything, and what is on its way arrives. */
  #settle(): void {
    for (let i = 0; i < 100 && this.#moving.size > 0; i++) this.#finishMoves();
    for (const index of this.#present) if (this.#hosts[index]!.own.size === 0) this.#acquire(index, this.#freeSubnet());
    for (const host of this.#hosts) this.#learn(host, this.#history.length - 1);
    for (const from of this.#hosts) {
      for (const to of this.#hosts) {
        const clean = { loss: 0, duplication: 0, corruption: 0, reordering: 0, latencyTicks: 1, pathMtu: 65_535 };
        this.network.setPath(from.address, to.address, clean);
      }
    }
    this.#quiet();
  }

  #quiet(): void {
    for (let idle = 0, rounds = 0; idle < 3; rounds++) {
      if (rounds > 10_000) throw new Error(`seed ${this.#options.seed}: the overlay never comes to rest`);
      this.network.advance();
      const rows = [...this.#present].reduce((sum, index) => sum + this.#pollHost(this.#hosts[index]!), 0);
      idle = rows === 0 && this.network.stats.inFlight === 0 ? idle + 1 : 0;
    }
  }

  /** Once all is settled every packet between any two hosts arrives exactly once, fragments too. */
  #everybodyTalks(): void {
    this.#arrivals = new Map();
    const expected: { readonly id: number; readonly pieces: number }[] = [];
    for (const from of this.#present) {
      for (const to of this.#present) {
        const host = this.#hosts[from]!;
        const [source, destination] = [[...host.own][0], [...this.#hosts[to]!.own][0]];
        if (from === to || source === undefined || destination === undefined) continue;
        const id = this.#inject(host, source, destination);
        const { bytes } = this.#sent[id]!;
        const fits = bytes.length + OVERHEAD <= this.#nextHop(from, to).mtu;
        const mayCut = bytes[0]! >>> 4 === 4 && (bytes[6]! & 0x40) === 0;
        expected.push({ id, pieces: fits ? 1 : mayCut ? 2 : 0 });
        this.#quiet();
      }
    }
    if (expected.length < 2) throw new Error(`seed ${this.#options.seed}: nobody is left to talk`);
    for (const { id, pieces } of expected) {
      const got = this.#arrivals.get(id) ?? 0;
      if (got !== pieces)
        throw this.#error(`packet ${id} arrived in ${got} pieces, not ${pieces}`, this.#sent[id]!.bytes);
    }
  }

  /** Every packet and datagram is somewhere. */
  #balance(): void {
    const wrong = discrepancies(this.#everyEngine(), this.network.stats, {
      strangers: this.#strangers,
      delivered: this.#delivered,
      answered: this.#answered,
    });
    if (wrong.length > 0) throw new Error(`seed ${this.#options.seed}: ${wrong.join('; ')}`);
  }

  /** Those of hosts that left, too. */
  #everyEngine(): readonly Engine[] {
    return [...this.#gone, ...this.#hosts.filter(({ index }) => this.#present.has(index))];
  }

  #error(what: string, bytes: Uint8Array): Error {
    const header = Array.from(bytes.subarray(0, 48), (byte) => byte.toString(16).padStart(2, '0')).join('');
    return new Error(
      `seed ${this.#options.seed}, tick ${this.network.now}: ${what} (${bytes.length} bytes, ${header}…)`,
    );
  }

  #outcome(): Outcome {
    const counters: Record<string, number> = {};
    for (const { engine } of this.#everyEngine()) {
      for (const [name, value] of Object.entries(engine.counters())) counters[name] = (counters[name] ?? 0) + value;
    }
    return {
      sent: this.#sent.length,
      delivered: this.#delivered,
      answered: this.#answered,
      fragments: counters['fragmentsSent'] ?? 0,
      changes: this.#history.length,
      counters,
    };
  }
}
