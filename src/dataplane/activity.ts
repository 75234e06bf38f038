/**
 * When each host was last heard: once a second the receive counts are compared, so that packets pay nothing for it and
 * a silent host shows within a second.
 */
import type { Batch } from '../io/batch.js';
import { PEER_PROBES_HEARD, PEER_WORDS } from '../io/batch.js';

const LOOK_EVERY_MS = 1000;
/** rxPackets in a host's words. */
const RX_PACKETS = 2;

export class PeerActivity {
  readonly #batches: readonly Pick<Batch, 'peers'>[];
  readonly #now: () => number;
  /** By host id: packets at the last look, and when there last were more; 0 for never. */
  readonly #packets: Float64Array;
  readonly #heardAt: Float64Array;
  /** Ids in use are below. */
  #end = 1;
  #timer: NodeJS.Timeout | undefined;

  /**
   * @param capacity host ids are below
   * @param now milliseconds that never go back, above 0
   */
  constructor(batches: readonly Pick<Batch, 'peers'>[], capacity: number, now: () => number = () => performance.now()) {
    this.#batches = batches;
    this.#now = now;
    this.#packets = new Float64Array(capacity);
    this.#heardAt = new Float64Array(capacity);
  }

  /** The id has a new host, whose counts are 0. */
  added(hostId: number): void {
    this.#packets[hostId] = 0;
    this.#heardAt[hostId] = 0;
    this.#end = Math.max(this.#end, hostId + 1);
  }

  /** Looks once a second; does not keep the process alive. */
  start(): void {
    this.#timer = setInterval(() => this.look(), LOOK_EVERY_MS);
    this.#timer.unref();
  }

  stop(): void {
    clearInterval(this.#timer);
  }

  look(): void {
    const now = this.#now();
    for (let id = 1; id < this.#end; id++) this.#lookAt(id, now);
  }

  /** Milliseconds since a packet of this host was delivered or a probe of it heard, as far as was looked; undefined for never. */
  lastHeardMs(hostId: number): number | undefined {
    const now = this.#now();
    this.#lookAt(hostId, now);
    const at = this.#heardAt[hostId]!;
    return at === 0 ? undefined : Math.round(now - at);
  }

  #lookAt(id: number, now: number): void {
    let packets = 0;
    for (const { peers } of this.#batches) {
      packets += peers[id * PEER_WORDS + RX_PACKETS]! + peers[id * PEER_WORDS + PEER_PROBES_HEARD]!;
    }
    if (packets === this.#packets[id]) return;
    this.#packets[id] = packets;
    this.#heardAt[id] = now;
  }
}
