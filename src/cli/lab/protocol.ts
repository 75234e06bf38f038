/**
 * What the lab asks of the small programs that it runs inside its namespaces, over Node's IPC channel. One request
 * has one reply; requests of one endpoint run side by side.
 */

/** Services of every endpoint, on all its addresses. */
export const PORTS: { readonly echo: number; readonly source: number; readonly who: number } = {
  /** TCP and UDP: what arrives goes back. */
  echo: 7007,
  /** TCP: sends zeros as fast as they are taken, until the receiver closes. */
  source: 7019,
  /** TCP and UDP: answers with the sender's address as it was seen, as text. */
  who: 7079,
};

export interface TcpEchoResult {
  /** Bytes that came back, in order, before the first one that differs. */
  readonly intactBytes: number;
  readonly milliseconds: number;
}

export interface UdpEchoResult {
  readonly sent: number;
  /** Replies whose every byte is right. */
  readonly received: number;
  readonly corrupt: number;
  /** Round-trip times in microseconds, one for each reply, in order of arrival. */
  readonly rttUs: readonly number[];
}

export interface Tick {
  /** Bytes received by the running stream since the last tick. */
  readonly streamBytes: number;
  /** The stream's error, when it broke. */
  readonly streamError?: string;
  /** Round trips of the running pinger since the last tick, in microseconds. */
  readonly rttUs: readonly number[];
  /** Pings sent since the last tick, and the ones given up for lost. */
  readonly pings: number;
  readonly lost: number;
}

/** The calls: name → arguments and result. Times are in milliseconds, sizes in bytes of UDP or TCP payload. */
export interface Calls {
  /** Sends `bytes` pseudo-random bytes to the TCP echo service and compares what comes back. */
  tcpEcho(args: { host: string; bytes: number; timeoutMs: number }): TcpEchoResult;
  /** Sends datagrams to the UDP echo service, one every `intervalMs`, and waits for the rest up to `timeoutMs`. */
  udpEcho(args: { host: string; sizes: readonly number[]; intervalMs: number; timeoutMs: number }): UdpEchoResult;
  /** Plays `rounds` of request and reply over one socket that stays open between calls with the same `flow`. */
  pingPong(args: { host: string; flow: string; rounds: number; timeoutMs: number }): UdpEchoResult;
  /** How the other side sees our address. */
  who(args: { host: string; timeoutMs: number }): { readonly tcp: string; readonly udp: string };
  /** Tries a TCP connection; resolves with the error's code (`ENETUNREACH`, `ETIMEDOUT`, …) or `connected`. */
  connect(args: { host: string; timeoutMs: number }): { readonly outcome: string; readonly milliseconds: number };
  /** Receives from the host's source service until `stopStream`. */
  startStream(args: { host: string }): null;
  stopStream(args: Record<string, never>): null;
  /** Sends a small UDP echo every `intervalMs` until `stopPings`; a reply later than 1 s counts as lost. */
  startPings(args: { host: string; intervalMs: number }): null;
  stopPings(args: Record<string, never>): null;
  tick(args: Record<string, never>): Tick;
}

export type CallName = keyof Calls;
export type Arguments<N extends CallName> = Parameters<Calls[N]>[0];
export type Result<N extends CallName> = ReturnType<Calls[N]>;

export interface Request {
  readonly id: number;
  readonly call: CallName;
  readonly args: unknown;
}

export type Reply =
  | { readonly id: number; readonly result: unknown }
  | { readonly id: number; readonly error: string }
  | { readonly ready: true };

/** The kind of socket that reaches an address. */
export function socketType(host: string): 'udp4' | 'udp6' {
  return host.includes(':') ? 'udp6' : 'udp4';
}
