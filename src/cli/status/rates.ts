/** What passes in a second, from two looks at the counters. */
import type { AgentStatus } from '../../agent/status.js';

export interface Rate {
  readonly egressBits: number;
  readonly ingressBits: number;
  readonly egressPackets: number;
  readonly ingressPackets: number;
}

export interface Rates {
  readonly total: Rate;
  /** By underlay address and port. */
  readonly peers: ReadonlyMap<string, Rate>;
  /** Drops a second, by counter; zeros left out. */
  readonly drops: Readonly<Record<string, number>>;
}

type Counts = readonly [egressBytes: number, ingressBytes: number, egressPackets: number, ingressPackets: number];

/** Names a peer's counters. */
export function peerKey(peer: { readonly address: string; readonly port: number }): string {
  return `${peer.address} ${peer.port}`;
}

/**
 * @param seconds between the two
 * @returns undefined where nothing can be compared: another process, no engine.
 */
export function ratesOf(before: AgentStatus, after: AgentStatus, seconds: number): Rates | undefined {
  if (before.dataplane === undefined || after.dataplane === undefined) return undefined;
  if (before.startedAt !== after.startedAt || before.pid !== after.pid || seconds <= 0) return undefined;
  const rate = (old: Counts, now: Counts): Rate => {
    // Fewer than before: a host that left and came back, or an engine that was opened again.
    const [egressBytes, ingressBytes, egressPackets, ingressPackets] = now.map((value, i) => {
      const from = old[i] ?? 0;
      return (value >= from ? value - from : value) / seconds;
    }) as [number, number, number, number];
    return { egressBits: egressBytes * 8, ingressBits: ingressBytes * 8, egressPackets, ingressPackets };
  };
  const totalsOf = ({ totals }: NonNullable<AgentStatus['dataplane']>): Counts => [
    totals.egressBytes,
    totals.ingressBytes,
    totals.egressPackets,
    totals.ingressPackets,
  ];
  type Peer = NonNullable<AgentStatus['dataplane']>['peers'][number];
  const countsOf = (peer: Peer): Counts => [peer.txBytes, peer.rxBytes, peer.txPackets, peer.rxPackets];
  const old = new Map(before.dataplane.peers.map((peer) => [peerKey(peer), countsOf(peer)]));
  const drops: Record<string, number> = {};
  for (const [name, value] of Object.entries(after.dataplane.totals)) {
    const more = value - (before.dataplane.totals[name as keyof typeof before.dataplane.totals] ?? 0);
    if (name.startsWith('drop') && more > 0) drops[name] = more / seconds;
  }
  return {
    total: rate(totalsOf(before.dataplane), totalsOf(after.dataplane)),
    peers: new Map(
      after.dataplane.peers.map((peer) => [
        peerKey(peer),
        rate(old.get(peerKey(peer)) ?? [0, 0, 0, 0], countsOf(peer)),
      ]),
    ),
    drops,
  };
}
