/** What {@link Dataplane.stats} gives: counters, peers and path MTUs at one moment. */
import type { TotalName } from './counters.js';
import type { PathMtuStats } from './pmtu.js';
import type { PeerProbe } from './probes.js';
import type { WorkerState } from './supervisor.js';

export interface PeerStats {
  /** Underlay address and port of the next hop. */
  readonly address: string;
  readonly port: number;
  readonly txPackets: number;
  readonly txBytes: number;
  /** Received from this host; hosts with several ports share one receive count. */
  readonly rxPackets: number;
  readonly rxBytes: number;
  /** Packets for this next hop that were not sent: too big, or refused by the socket. */
  readonly txDrops: number;
  /** Packets from this host that were not delivered; like `rxPackets` shared by its ports. */
  readonly rxDrops: number;
  /** Milliseconds since a packet of this host was last delivered, to a second; absent when none was. */
  readonly lastHeardMs?: number;
  /** Answers to probes; absent when it was not asked. */
  readonly probe?: PeerProbe;
  /** Bytes of outer packet. */
  readonly pathMtu: number;
  readonly routes: number;
}

export interface DataplaneStats {
  /** Sums over all workers, and the kernel's overflows; see counters.ts for what each one means. */
  readonly totals: Readonly<Record<TotalName, number>>;
  readonly workers: readonly {
    readonly state: WorkerState;
    readonly restarts: number;
    readonly counters: Readonly<Record<string, number>>;
  }[];
  readonly peers: readonly PeerStats[];
  readonly routes: number;
  readonly pathMtu: PathMtuStats;
  /** The latest outer sender whose packets were refused, and how many packets of all such there were. */
  readonly offenders: {
    readonly unknownSender?: { readonly address: string; readonly count: number };
    readonly spoofedSource?: { readonly address: string; readonly count: number };
  };
}
