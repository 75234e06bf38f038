/**
 * The engine: a TUN device on one side, UDP sockets on the other, a routing table in between. This is what other
 * agents embed: bring your own control plane, set routes, done. It makes the TUN and the sockets; addresses, MTU, link
 * state and kernel routes of the device are the host's business (src/host), as are leases (src/control).
 */
import { availableParallelism } from 'node:os';
import type { PodwireError } from '../errors.js';
import { Fib } from '../fib/fib.js';
import type { RouteTable } from '../fib/fib.js';
import { createFibMemory } from '../fib/layout.js';
import type { Batch } from '../io/batch.js';
import {
  clearReceiveCounts,
  clearTransmitCounts,
  createBatchMemory,
  openBatch,
  PEER_RX_DROPS,
  PEER_TX_DROPS,
  PEER_WORDS,
} from '../io/batch.js';
import type { Capabilities } from '../io/ports.js';
import type { OverlayMtu } from '../net/mtu.js';
import type { Prefix } from '../net/prefix.js';
import { Address } from '../net/prefix.js';
import { PeerActivity } from './activity.js';
import type { TotalName } from './counters.js';
import { COUNTER_COUNT, COUNTER_NAMES, namedCounters } from './counters.js';
import { DropLog } from './drop-log.js';
import { KernelSide } from './kernel.js';
import type { DataplaneOptions, ResolvedOptions } from './options.js';
import { resolveOptions } from './options.js';
import { PeerRoutes } from './peer-routes.js';
import { PathMtuTable } from './pmtu.js';
import {
  NOTE_SPOOFED,
  NOTE_UNKNOWN_SENDER,
  POLICY_OVERHEAD,
  POLICY_PROBE_NONCE,
  POLICY_SOURCE_CHECK,
  POLICY_WORDS,
  SOURCE_CHECKS,
  readNote,
} from './policy.js';
import { PeerProbes } from './probes.js';
import type { DataplaneStats } from './stats.js';
import { Supervisor } from './supervisor.js';

export type { DataplaneOptions } from './options.js';
export type { DataplaneStats, PeerStats } from './stats.js';

/** What closes over a running data plane's parts; `internals` is for podwire's own tests. */
interface Parts {
  readonly options: ResolvedOptions;
  readonly kernel: KernelSide;
  readonly fib: Fib;
  readonly policy: Int32Array<SharedArrayBuffer>;
  readonly supervisor: Supervisor;
  readonly activity: PeerActivity;
}

export class Dataplane implements AsyncDisposable {
  /** The TUN device. */
  readonly device: { readonly name: string; readonly index: number };
  /** Inner prefixes and the hosts that hold them. */
  readonly routes: RouteTable;
  readonly mtu: OverlayMtu;
  /** What was negotiated with the kernel. */
  readonly capabilities: Capabilities;
  /** Resolves after {@link close}; rejects when the data plane cannot go on, for instance because the TUN is gone. */
  readonly closed: Promise<void>;
  /** Resolves when every worker carries packets; rejects when one cannot start, and then close() is the caller's. */
  readonly forwarding: Promise<void>;
  readonly #parts: Parts;
  readonly #pathMtu: PathMtuTable;
  readonly #dropLog: DropLog;
  readonly #probes: PeerProbes;
  readonly #onExit: () => void;
  #settle!: { resolve: () => void; reject: (error: PodwireError) => void };
  #closing: Promise<void> | undefined;

  private constructor(parts: Parts, failed: Promise<PodwireError>) {
    const { options, kernel, fib } = parts;
    this.#parts = parts;
    this.forwarding = parts.supervisor.start();
    this.forwarding.catch(() => undefined); // whoever waits for it hears it
    this.device = kernel.device;
    this.capabilities = kernel.capabilities;
    this.mtu = options.mtu;
    this.closed = new Promise((resolve, reject) => {
      this.#settle = { resolve, reject };
    });
    this.closed.catch(() => undefined); // an embedder may not look at it
    void failed.then((error) => {
      options.logger.error({ code: error.code }, error.message);
      void this.#shutDown().then(() => this.#settle.reject(error));
    });
    this.#onExit = () => parts.supervisor.signalStop();
    process.once('exit', this.#onExit);
    this.#pathMtu = new PathMtuTable({
      probe: options.pathMtu,
      underlayMtu: options.mtu.underlay,
      configuredMtu: options.configuredMtu,
      logger: options.logger,
      onChange: (address, mtu) => void fib.setPathMtu(address, mtu),
    });
    this.routes = new PeerRoutes(fib, options.address.family, this.#pathMtu);
    this.#dropLog = new DropLog(
      () => ({ totals: this.#totals(), offenders: this.#offenders() }),
      options.logger,
      () => this.#pathMtu.refresh(),
    );
    this.#dropLog.start();
    parts.activity.start();
    this.#probes = new PeerProbes({
      batches: parts.supervisor.workers.map(({ batch }) => batch),
      peers: () => fib.nextHopRows(),
      ask: ({ address, port }, nonce) => void kernel.askProbe(address.bytes, port, nonce),
      logger: options.logger,
    });
    if (options.peerProbes) {
      parts.policy[POLICY_PROBE_NONCE] = this.#probes.nonce;
      this.#probes.start();
    }
  }

  /**
   * Creates the device and the sockets and starts the workers; when it resolves, packets are forwarded. Nothing is left
   * behind when it rejects.
   *
   * @throws PodwireError INVALID_ARGUMENT, INVALID_ADDRESS, PERMISSION, DEVICE, DEVICE_IN_USE, PORT_IN_USE, INTERFACE,
   * ADDON, SYSTEM
   */
  static async open(options: DataplaneOptions): Promise<Dataplane> {
    const dataplane = Dataplane.start(options);
    try {
      await dataplane.forwarding;
    } catch (error) {
      await dataplane.close();
      throw error;
    }
    return dataplane;
  }

  /**
   * {@link open} without the wait for the workers, whose threads need a while to come up: device and sockets are there
   * when it returns, packets wait in them until {@link forwarding} resolves.
   *
   * @throws PodwireError as {@link open}; nothing is left behind
   */
  static start(options: DataplaneOptions): Dataplane {
    const resolved = resolveOptions(options, availableParallelism());
    const memory = createFibMemory({
      maxRoutes: resolved.maxRoutes,
      maxNextHops: resolved.maxRoutes,
      readers: resolved.workers,
    });
    const memories = Array.from({ length: resolved.workers }, () =>
      createBatchMemory(COUNTER_COUNT, memory.rowCapacity),
    );
    const batches = memories.map(openBatch);
    const activity = new PeerActivity(batches, memory.rowCapacity);
    const fib = new Fib(memory, {
      underlayMtu: resolved.mtu.underlay,
      encapsulation: resolved.encapsulation,
      onNextHopAdded: (index) => {
        for (const { peers } of batches) clearTransmitCounts(peers, index);
      },
      onHostAdded: (id) => {
        for (const { peers } of batches) clearReceiveCounts(peers, id);
        activity.added(id);
      },
    });
    fib.setLocal(resolved.local, resolved.ownAddresses);
    const policy = new Int32Array(new SharedArrayBuffer(POLICY_WORDS * 4));
    policy[POLICY_SOURCE_CHECK] = SOURCE_CHECKS.indexOf(resolved.sourceCheck);
    policy[POLICY_OVERHEAD] = resolved.mtu.overhead;
    const kernel = KernelSide.open(resolved);
    let fail!: (error: PodwireError) => void;
    const failed = new Promise<PodwireError>((resolve) => {
      fail = resolve;
    });
    const supervisor = new Supervisor(resolved, kernel, fib, policy, memories, fail);
    return new Dataplane({ options: resolved, kernel, fib, policy, supervisor, activity }, failed);
  }

  /** Replaces the own leases and addresses, without a gap for those that stay. @throws PodwireError INVALID_ADDRESS */
  setLocal(local: readonly (Prefix | string)[], ownAddresses?: readonly (Address | string)[]): void {
    this.#parts.fib.setLocal(local, ownAddresses ?? this.#parts.options.ownAddresses);
  }

  /** A link or route of this host changed: the configured MTUs of all next hops are read again. */
  refreshPathMtu(): void {
    this.#pathMtu.refresh();
  }

  /** Everything that is counted, at the moment of the call. Cheap enough for once a second, not for once a packet. */
  stats(): DataplaneStats {
    const { fib, supervisor, activity } = this.#parts;
    const batches = supervisor.workers.map(({ batch }) => batch);
    const workers = supervisor.workers.map(({ state, restarts, batch }) => {
      return { state, restarts, counters: namedCounters(batch.counters) };
    });
    const peers = fib.nextHopRows().map((row) => {
      const { index, hostId, port, pathMtu, routes } = row;
      const lastHeardMs = activity.lastHeardMs(hostId);
      const probe = this.#probes.of(hostId);
      return {
        address: row.address.toString(),
        port,
        txPackets: peerSum(batches, index, 0),
        txBytes: peerSum(batches, index, 1),
        rxPackets: peerSum(batches, hostId, 2),
        rxBytes: peerSum(batches, hostId, 3),
        txDrops: peerSum(batches, index, PEER_TX_DROPS),
        rxDrops: peerSum(batches, hostId, PEER_RX_DROPS),
        ...(lastHeardMs === undefined ? {} : { lastHeardMs }),
        ...(probe === undefined ? {} : { probe }),
        pathMtu,
        routes,
      };
    });
    return {
      totals: this.#totals(),
      workers,
      peers,
      routes: fib.size,
      pathMtu: this.#pathMtu.stats(),
      offenders: this.#offenders(),
    };
  }

  /** Stops the workers and closes the device and the sockets. Takes a few milliseconds; may be called twice. */
  close(): Promise<void> {
    return this.#shutDown().then(() => this.#settle.resolve());
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** For podwire's own tests: makes a worker fail. See worker.ts for `how`. */
  injectFailure(worker: number, how: number): void {
    this.#parts.supervisor.inject(worker, how);
  }

  #totals(): Record<TotalName, number> {
    const { kernel, supervisor } = this.#parts;
    const totals = {} as Record<TotalName, number>;
    COUNTER_NAMES.forEach((name, index) => {
      totals[name] = supervisor.workers.reduce((sum, { batch }) => sum + batch.counters[index]!, 0);
    });
    const open = this.#closing === undefined;
    return Object.assign(totals, open ? kernel.overflows() : { dropTunQueue: 0, dropSocketOverflow: 0 });
  }

  #offenders(): DataplaneStats['offenders'] {
    const { policy } = this.#parts;
    const unknownSender = offender(policy, NOTE_UNKNOWN_SENDER);
    const spoofedSource = offender(policy, NOTE_SPOOFED);
    return {
      ...(unknownSender === undefined ? {} : { unknownSender }),
      ...(spoofedSource === undefined ? {} : { spoofedSource }),
    };
  }

  #shutDown(): Promise<void> {
    this.#closing ??= (async () => {
      process.removeListener('exit', this.#onExit);
      this.#dropLog.stop();
      this.#parts.activity.stop();
      this.#probes.stop();
      this.#pathMtu.close();
      await this.#parts.supervisor.stop();
      this.#parts.kernel.close();
    })();
    return this.#closing;
  }
}

/** One word of a next hop or host over all workers. */
function peerSum(batches: readonly Batch[], index: number, word: number): number {
  let sum = 0;
  for (const { peers } of batches) sum += peers[index * PEER_WORDS + word]!;
  return sum;
}

function offender(policy: Int32Array, note: number): { readonly address: string; readonly count: number } | undefined {
  const found = readNote(policy, note);
  return found && { address: Address.fromBytes(found.bytes).toString(), count: found.count };
}
