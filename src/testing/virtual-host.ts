/**
 * One host's engine without threads and kernel: forwarding table, forwarder and a packet port of the caller's choice,
 * moved on by explicit turns. What a worker thread loops over is here one call.
 */
import { COUNTER_COUNT, namedCounters } from '../dataplane/counters.js';
import type { CounterName } from '../dataplane/counters.js';
import { Forwarder } from '../dataplane/forwarder.js';
import { POLICY_OVERHEAD, POLICY_SOURCE_CHECK, POLICY_WORDS, SOURCE_CHECKS } from '../dataplane/policy.js';
import type { SourceCheck } from '../dataplane/policy.js';
import type { Encapsulation } from '../encap/encapsulation.js';
import { udpEncapsulation } from '../encap/udp.js';
import { PodwireError } from '../errors.js';
import { Fib } from '../fib/fib.js';
import { controlView, createFibMemory, readerWord, rowsView } from '../fib/layout.js';
import { FibReader } from '../fib/lookup.js';
import { PEER_WORDS, clearReceiveCounts, clearTransmitCounts, createBatchMemory } from '../io/batch.js';
import type { BatchMemory } from '../io/batch.js';
import type { PacketPort } from '../io/ports.js';
import type { Address, Family, Prefix } from '../net/prefix.js';

/** What a port is made from: its own tables, and what it may look at in the forwarding table. */
export interface PortResources {
  readonly memory: BatchMemory;
  /** The forwarding table's rows of next hops, 64 bytes each. */
  readonly nextHops: Uint8Array;
  /** The epoch word of this host's one reader. */
  readonly reader: Int32Array;
}

export interface VirtualHostOptions<Port extends PacketPort> {
  /** Own leases, then own addresses outside of them. */
  readonly local: readonly (Prefix | string)[];
  readonly ownAddresses?: readonly (Address | string)[];
  /** Address family of the underlay; decides the overhead. Default 4. */
  readonly outer?: Family;
  /** What stands between outer UDP header and inner packet; default flannel's udp, which is nothing. */
  readonly encapsulation?: Encapsulation;
  readonly sourceCheck?: SourceCheck;
  /** Path MTU of next hops about which nothing is known, bytes; default 1500. */
  readonly underlayMtu?: number;
  readonly maxRoutes?: number;
  /** Milliseconds for the rate limits of ICMP errors; by default the clock stands still. */
  readonly now?: () => number;
  /** Words that several hosts may share, as the workers of one data plane do; by default its own. */
  readonly policy?: Int32Array;
  readonly openPort: (resources: PortResources) => Port;
}

/** What was sent to and received from one underlay host. */
export interface PeerCounts {
  readonly txPackets: number;
  readonly txBytes: number;
  readonly rxPackets: number;
  readonly rxBytes: number;
}

export class VirtualHost<Port extends PacketPort = PacketPort> {
  readonly port: Port;
  readonly fib: Fib;
  readonly policy: Int32Array;
  /** This host's epoch word: 0 while it holds no row of the forwarding table. */
  readonly readerWord: Int32Array;
  readonly #reader: FibReader;
  readonly #forwarder: Forwarder;

  constructor(options: VirtualHostOptions<Port>) {
    const maxRoutes = options.maxRoutes ?? 1000;
    const encapsulation = options.encapsulation ?? udpEncapsulation;
    const fibMemory = createFibMemory({ maxRoutes, maxNextHops: maxRoutes, readers: 1 });
    const memory = createBatchMemory(COUNTER_COUNT, fibMemory.rowCapacity);
    const word = readerWord(0);
    this.readerWord = controlView(fibMemory).subarray(word, word + 1);
    this.port = options.openPort({ memory, nextHops: rowsView(fibMemory), reader: this.readerWord });
    const { peers } = this.port.batch;
    this.fib = new Fib(fibMemory, {
      underlayMtu: options.underlayMtu ?? 1500,
      encapsulation,
      onNextHopAdded: (index) => clearTransmitCounts(peers, index),
      onHostAdded: (id) => clearReceiveCounts(peers, id),
    });
    this.fib.setLocal(options.local, options.ownAddresses);
    this.policy = options.policy ?? new Int32Array(new SharedArrayBuffer(POLICY_WORDS * 4));
    this.policy[POLICY_SOURCE_CHECK] = SOURCE_CHECKS.indexOf(options.sourceCheck ?? 'lease');
    this.policy[POLICY_OVERHEAD] = encapsulation.overhead(options.outer ?? 4);
    this.#reader = new FibReader(fibMemory, 0);
    this.#forwarder = new Forwarder(this.port.batch, this.#reader, this.policy, options.now ?? (() => 0));
  }

  /**
   * One turn of the worker loop: verdicts out, packets in, decisions taken. The decisions are carried out by the next.
   * @returns rows that were decided
   * @throws PodwireError DEVICE when the port is dead
   */
  poll(timeoutMs = 0): number {
    const rows = this.port.turn(timeoutMs);
    if (rows < 0) throw new PodwireError('DEVICE', `the packet port failed with errno ${-rows}`);
    if (rows === 0) return 0;
    const egress = rows & 0xffff;
    const ingress = rows >>> 16;
    this.#reader.enter();
    if (egress !== 0) this.#forwarder.egress(egress);
    if (ingress !== 0) this.#forwarder.ingress(ingress);
    return egress + ingress;
  }

  counters(): Readonly<Record<CounterName, number>> {
    return namedCounters(this.port.batch.counters);
  }

  /** Sum of all counters of drops. */
  dropped(): number {
    return Object.entries(this.counters()).reduce(
      (total, [name, value]) => (name.startsWith('drop') ? total + value : total),
      0,
    );
  }

  /** Counts of the next hop with this underlay address, or undefined when no route leads there. */
  peer(address: Address | string): PeerCounts | undefined {
    const row = this.fib.nextHopRows().find((next) => next.address.toString() === address.toString());
    if (row === undefined) return undefined;
    const { peers } = this.port.batch;
    const tx = row.index * PEER_WORDS;
    const rx = row.hostId * PEER_WORDS + 2;
    return { txPackets: peers[tx]!, txBytes: peers[tx + 1]!, rxPackets: peers[rx]!, rxBytes: peers[rx + 1]! };
  }

  close(): void {
    this.#reader.leave();
    this.port.destroy();
  }
}
