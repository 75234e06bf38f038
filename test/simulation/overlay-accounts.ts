/** Book-keeping of the overlay simulation: what went in must have come out, or be in exactly one counter. */
import type { MemoryPort, NetworkStats, VirtualHost } from '../../src/testing.js';

export interface Engine {
  readonly engine: VirtualHost<MemoryPort>;
  /** Packets that its pods sent and its TUN took. */
  readonly injected: number;
}

/** What the simulation itself has seen. */
export interface Seen {
  /** Datagrams sent by nobody of the overlay. */
  readonly strangers: number;
  readonly delivered: number;
  readonly answered: number;
}

/** Sums that do not agree, as text; none when everything is accounted for. Nothing may wait anywhere. */
export function discrepancies(engines: readonly Engine[], network: NetworkStats, seen: Seen): string[] {
  const wrong: string[] = [];
  const equal = (got: number, wanted: number, what: string): void => {
    if (got !== wanted) wrong.push(`${what}: ${got}, expected ${wanted}`);
  };
  const total = { egressPackets: 0, taken: 0, ingressPackets: 0, repliesSent: 0 };
  for (const { engine, injected } of engines) {
    const c = engine.counters();
    // A packet that was cut counts once: every path that cuts one cuts it into two.
    const sent = c.egressPackets - c.fragmentsSent / 2;
    const refused =
      c.dropNoRoute + c.dropOwnSubnet + c.dropMulticast + c.dropTooBig + c.dropSendTooBig + c.dropSendError;
    equal(sent + refused, injected, 'packets from pods');
    // Pods send nothing malformed here, so that all of these came from the underlay.
    const unread = c.dropShort + c.dropMalformed + c.dropTruncated;
    total.taken += c.ingressPackets + unread + c.dropUnknownSender + c.dropSpoofedSource + c.dropNotLocal;
    total.egressPackets += c.egressPackets;
    total.ingressPackets += c.ingressPackets;
    total.repliesSent += c.repliesSent;
    equal(engine.port.waiting, 0, 'packets that wait');
    equal(engine.readerWord[0]!, 0, 'epoch held by a host that waits');
  }
  equal(network.sent, total.egressPackets + seen.strangers, 'datagrams sent');
  equal(network.delivered, total.taken, 'datagrams taken in');
  const { lost, tooBig, noReceiver, overflow, delivered, inFlight } = network;
  const ended = lost + tooBig + noReceiver + overflow + delivered + inFlight;
  equal(ended, network.sent + network.duplicated, 'datagrams in the network');
  equal(seen.delivered, total.ingressPackets, 'packets delivered');
  equal(seen.answered, total.repliesSent, 'answers delivered');
  return wrong;
}
