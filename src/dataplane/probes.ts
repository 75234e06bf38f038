/**
 * Round trip and loss of every peer: one question of 16 bytes a second (native/probe.c has its layout), asked and
 * answered on the data port, so that it takes the packets' way. Peers that are no podwire ignore it. Probes only
 * inform: a peer without answers is told, never withdrawn.
 */
import { randomInt } from 'node:crypto';
import type { NextHopRow } from '../fib/next-hops.js';
import type { Batch } from '../io/batch.js';
import { PEER_PROBE_ANSWERS, PEER_PROBE_MICROSECONDS, PEER_WORDS } from '../io/batch.js';
import type { Logger } from './logger.js';

/**
 * `ok`: answers. `no-probe`: has never answered; no podwire, or unreachable. `unanswered`: has answered, and left the
 * last five questions open.
 */
export type PeerProbeState = 'ok' | 'no-probe' | 'unanswered';

export interface PeerProbe {
  readonly state: PeerProbeState;
  /** Smoothed round trip (RFC 6298's factor 1/8) in microseconds; absent before the first answer. */
  readonly rttUs?: number;
  /** Of the last 32 questions, in thousandths. */
  readonly lossPermille: number;
}

const TICK_MS = 100;
const ROUND_MS = 1000;
/** Questions a second at most, over all peers: with more peers a round takes longer. */
const MOST_PER_SECOND = 500;
const HISTORY = 32;
const SILENT_AFTER = 5;
/** Peers named one by one when they fall silent or come back in one round. */
const NAMED = 4;

interface Peer {
  readonly address: string;
  /** Outcomes, the latest in bit 0: 1 is answered. */
  history: number;
  asked: number;
  answers: number;
  microseconds: number;
  rttUs: number | undefined;
  silent: number;
  isTold: boolean;
  /** Round in which it was last among the next hops. */
  round: number;
}

export interface PeerProbesOptions {
  readonly batches: readonly Pick<Batch, 'peers'>[];
  readonly peers: () => readonly NextHopRow[];
  /** Sends one question; a failure is a question without answer. */
  readonly ask: (peer: NextHopRow, nonce: number) => void;
  readonly logger: Logger;
}

export class PeerProbes {
  /** 24 bits that our answers carry, so that nobody who has not seen a question can give one. */
  readonly nonce: number = randomInt(1, 1 << 24);
  readonly #options: PeerProbesOptions;
  readonly #peers = new Map<number, Peer>();
  #round: readonly NextHopRow[] = [];
  #rounds = 0;
  #position = 0;
  #perTick = 1;
  #ticksLeft = 0;
  #timer: NodeJS.Timeout | undefined;

  constructor(options: PeerProbesOptions) {
    this.#options = options;
  }

  /** Does not keep the process alive. */
  start(): void {
    this.#timer = setInterval(() => this.tick(), TICK_MS);
    this.#timer.unref();
  }

  stop(): void {
    clearInterval(this.#timer);
  }

  /** What is known of the host with this id; undefined until it has been asked. */
  of(hostId: number): PeerProbe | undefined {
    const peer = this.#peers.get(hostId);
    // The question that is open is no loss yet.
    if (peer === undefined || peer.asked === 0) return undefined;
    const judged = Math.min(HISTORY, peer.asked - 1);
    const answered = bitCount(judged === HISTORY ? peer.history : peer.history & ((1 << judged) - 1));
    return {
      state: peer.rttUs === undefined ? 'no-probe' : peer.silent >= SILENT_AFTER ? 'unanswered' : 'ok',
      ...(peer.rttUs === undefined ? {} : { rttUs: Math.round(peer.rttUs) }),
      lossPermille: judged === 0 ? 0 : Math.round(((judged - answered) * 1000) / judged),
    };
  }

  /** A tenth of a second's share of the round. */
  tick(): void {
    if (this.#ticksLeft === 0) this.#beginRound();
    this.#ticksLeft--;
    const end = Math.min(this.#round.length, this.#position + this.#perTick);
    for (; this.#position < end; this.#position++) {
      const row = this.#round[this.#position]!;
      this.#peers.get(row.hostId)!.asked++;
      this.#options.ask(row, this.nonce);
    }
  }

  /** Judges the last round's questions and lists the peers of the next. */
  #beginRound(): void {
    this.#rounds++;
    const fallen: string[] = [];
    const back: string[] = [];
    const hosts = new Map<number, NextHopRow>();
    for (const row of this.#options.peers()) if (row.hostId !== 0 && !hosts.has(row.hostId)) hosts.set(row.hostId, row);
    for (const [id, row] of hosts) {
      const peer = this.#peerOf(id, row.address.toString());
      peer.round = this.#rounds;
      if (peer.asked > 0) this.#judge(id, peer);
      const isSilent = peer.rttUs !== undefined && peer.silent >= SILENT_AFTER;
      if (isSilent !== peer.isTold) (isSilent ? fallen : back).push(row.address.toString());
      peer.isTold = isSilent;
    }
    for (const [id, { round }] of this.#peers) if (round !== this.#rounds) this.#peers.delete(id);
    this.#tell(fallen, back);
    this.#round = [...hosts.values()];
    this.#position = 0;
    const roundMs = Math.max(ROUND_MS, (this.#round.length * 1000) / MOST_PER_SECOND);
    this.#ticksLeft = Math.ceil(roundMs / TICK_MS);
    this.#perTick = Math.max(1, Math.ceil(this.#round.length / this.#ticksLeft));
  }

  /** An id may have gone to another host since the last round. */
  #peerOf(id: number, address: string): Peer {
    const known = this.#peers.get(id);
    if (known?.address === address) return known;
    const peer = newPeer(address);
    this.#peers.set(id, peer);
    return peer;
  }

  #judge(id: number, peer: Peer): void {
    let answers = 0;
    let microseconds = 0;
    for (const { peers } of this.#options.batches) {
      answers += peers[id * PEER_WORDS + PEER_PROBE_ANSWERS]!;
      microseconds += peers[id * PEER_WORDS + PEER_PROBE_MICROSECONDS]!;
    }
    const fresh = answers - peer.answers;
    peer.history = (peer.history << 1) | (fresh > 0 ? 1 : 0);
    if (fresh > 0) {
      const sampleUs = (microseconds - peer.microseconds) / fresh;
      peer.rttUs = peer.rttUs === undefined ? sampleUs : peer.rttUs + (sampleUs - peer.rttUs) / 8;
      peer.silent = 0;
    } else {
      peer.silent++;
    }
    peer.answers = answers;
    peer.microseconds = microseconds;
  }

  #tell(fallen: readonly string[], back: readonly string[]): void {
    const { logger } = this.#options;
    if (fallen.length > 0) {
      logger.warn(
        { peers: fallen.length },
        `${list(fallen)} left ${SILENT_AFTER} probes unanswered: the host or the way to it may be down, its routes stay`,
      );
    }
    if (back.length > 0) logger.info({ peers: back.length }, `${list(back)} answers probes again`);
  }
}

function newPeer(address: string): Peer {
  return {
    address,
    history: 0,
    asked: 0,
    answers: 0,
    microseconds: 0,
    rttUs: undefined,
    silent: 0,
    isTold: false,
    round: 0,
  };
}

function list(addresses: readonly string[]): string {
  const named = addresses.slice(0, NAMED).join(', ');
  return addresses.length > NAMED ? `${named} and ${addresses.length - NAMED} more` : named;
}

function bitCount(word: number): number {
  let count = 0;
  for (let rest = word >>> 0; rest !== 0; rest &= rest - 1) count++;
  return count;
}
