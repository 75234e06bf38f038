/**
 * Calls to an etcd cluster over gRPC, through whichever endpoint answers.
 *
 * Reads, and writes that may safely be repeated, are *raced*: they start at the endpoint that last did well, and at
 * the next one as soon as that fails or is slow; the first answer wins and its endpoint is used from then on. A write
 * that must not be repeated goes to one endpoint once; whether it was done is found out by reading.
 *
 * One connection an endpoint, none before the first call. HTTP/2 pings find a dead one within 15 s. Proxies of the
 * environment are not used.
 */
import { checkServerIdentity } from 'node:tls';
import type * as Grpc from '@grpc/grpc-js';
import { pause, systemClock } from '../../clock.js';
import { EtcdFault, faultOf } from './faults.js';
import { METHODS, type MethodName, type Methods, type WatchRequest, type WatchResponse } from './protocol.js';
import type { Endpoint, TlsFiles, TlsMaterial } from './settings.js';

export interface TransportOptions {
  readonly endpoints: readonly Endpoint[];
  readonly tls: TlsFiles | undefined;
  readonly username: string | undefined;
  readonly password: string | undefined;
  readonly requestTimeoutMs: number;
  readonly random: () => number;
}

export interface TransportCounters {
  requests: number;
  requestErrors: number;
  requestSecondsTotal: number;
  /** How often another endpoint became the preferred one. */
  endpointSwitches: number;
  logins: number;
}

export interface WatchStream {
  readonly endpoint: string;
  send(request: WatchRequest): void;
  cancel(): void;
}

interface Node {
  readonly endpoint: Endpoint;
  client: Grpc.Client | undefined;
}

/** How long a read waits for the preferred endpoint before it asks the next one as well. */
const HEDGE_MS = { unproven: 150, proven: 500 } as const;
/** Between the two rounds of a read that failed everywhere. */
const SECOND_ROUND_MS = 100;
/** The second round needs this much of the request's time. */
const SECOND_ROUND_LEFT_MS = 400;

/** TLS has no way to name an address, and the library would name it all the same; certificates are checked by address. */
const NO_NAME = 'etcd';

const CHANNEL_OPTIONS = {
  // etcd closes connections that are pinged more often than every 5 s.
  'grpc.keepalive_time_ms': 10_000,
  'grpc.keepalive_timeout_ms': 5_000,
  'grpc.keepalive_permit_without_calls': 0,
  'grpc.initial_reconnect_backoff_ms': 100,
  'grpc.max_reconnect_backoff_ms': 2_000,
  'grpc.max_receive_message_length': -1,
  'grpc.enable_retries': 0,
  'grpc.service_config_disable_resolution': 1,
  'grpc.enable_http_proxy': 0,
  'grpc.use_local_subchannel_pool': 1,
  'grpc.enable_channelz': 0,
} as const;

export class EtcdTransport {
  readonly counters: TransportCounters = {
    requests: 0,
    requestErrors: 0,
    requestSecondsTotal: 0,
    endpointSwitches: 0,
    logins: 0,
  };
  readonly #options: TransportOptions;
  readonly #grpc: Promise<typeof Grpc>;
  /** The preferred endpoint first. */
  #nodes: Node[];
  #isProven = false;
  #tlsMaterial: TlsMaterial | undefined;
  #token: Promise<string | undefined> | undefined;
  #isClosed = false;

  constructor(options: TransportOptions) {
    this.#options = options;
    const { endpoints, random } = options;
    // Hosts spread over the endpoints by chance; any of them serves all of the cluster's data.
    const start = Math.min(endpoints.length - 1, Math.floor(random() * endpoints.length));
    const order = [...endpoints.slice(start), ...endpoints.slice(0, start)];
    this.#nodes = order.map((endpoint) => ({ endpoint, client: undefined }));
    this.#grpc = import('@grpc/grpc-js');
    // Whoever calls first hears of it.
    this.#grpc.catch(() => undefined);
  }

  /** Calls a method that may be repeated. @throws EtcdFault, the last word of all endpoints. */
  async read<M extends MethodName>(
    method: M,
    request: Methods[M][0],
    signal?: AbortSignal,
    timeoutMs: number = this.#options.requestTimeoutMs,
  ): Promise<Methods[M][1]> {
    const giveUpMs = performance.now() + timeoutMs;
    try {
      return await this.#race(method, request, giveUpMs, signal);
    } catch (error) {
      const isWorthIt =
        error instanceof EtcdFault && error.isTransient && performance.now() + SECOND_ROUND_LEFT_MS < giveUpMs;
      if (!isWorthIt || !(await pause(systemClock, SECOND_ROUND_MS * (0.5 + this.#options.random()), signal)))
        throw error;
      return this.#race(method, request, giveUpMs, signal);
    }
  }

  /** Calls a method once, at the preferred endpoint. @throws EtcdFault; when transient the call may have been done. */
  async write<M extends MethodName>(method: M, request: Methods[M][0], signal?: AbortSignal): Promise<Methods[M][1]> {
    const node = this.#nodes[0]!;
    try {
      return await this.#attempt(node, method, request, performance.now() + this.#options.requestTimeoutMs, signal);
    } catch (error) {
      if (error instanceof EtcdFault && error.isTransient) this.#demote(node);
      throw error;
    }
  }

  /**
   * Opens the watch stream at the preferred endpoint, which ends it when it loses the cluster's leader. `onEnd` is
   * called once, unless `cancel` was.
   */
  async openWatch(
    onMessage: (message: WatchResponse) => void,
    onEnd: (fault: EtcdFault) => void,
  ): Promise<WatchStream> {
    const grpc = await this.#grpc;
    const node = this.#nodes[0]!;
    const token = await this.#login(performance.now() + this.#options.requestTimeoutMs);
    const metadata = new grpc.Metadata();
    metadata.set('hasleader', 'true');
    if (token !== undefined) metadata.set('token', token);
    const { path, serialize, deserialize } = METHODS.watch;
    const call = this.#client(grpc, node).makeBidiStreamRequest(path, serialize, deserialize, metadata);
    let isOver = false;
    const end = (error: unknown): void => {
      if (isOver) return;
      isOver = true;
      this.counters.requestErrors++;
      const fault = faultOf(error, node.endpoint.url, this.#options.requestTimeoutMs);
      this.#failed(node, fault);
      if (fault.isTransient) this.#demote(node);
      onEnd(fault);
    };
    call.on('data', (message: WatchResponse) => {
      if (!isOver) onMessage(message);
    });
    call.on('error', end);
    call.on('end', () => end({ code: 14, details: 'the connection broke (etcd ended the watch)' }));
    this.counters.requests++;
    return {
      endpoint: node.endpoint.url,
      send: (request) => {
        if (!isOver) call.write(request);
      },
      cancel: () => {
        isOver = true;
        call.cancel();
      },
    };
  }

  /** Logs in again before the next call. */
  forgetToken(): void {
    this.#token = undefined;
  }

  /** The present endpoint did badly in a way that only the caller could see. */
  avoid(url: string): void {
    const node = this.#nodes[0]!;
    if (node.endpoint.url === url) this.#demote(node);
  }

  close(): void {
    this.#isClosed = true;
    this.#closeClients();
  }

  #race<M extends MethodName>(
    method: M,
    request: Methods[M][0],
    giveUpMs: number,
    outer: AbortSignal | undefined,
  ): Promise<Methods[M][1]> {
    const nodes = [...this.#nodes];
    const faults: EtcdFault[] = [];
    const stop = new AbortController();
    const onAbort = (): void => stop.abort();
    outer?.addEventListener('abort', onAbort, { once: true });
    if (outer?.aborted) stop.abort();
    let next = 0;
    let running = 0;
    let hedge: NodeJS.Timeout | undefined;
    const race = new Promise<Methods[M][1]>((resolve, reject) => {
      const launch = (): void => {
        const node = nodes[next++]!;
        running++;
        if (next < nodes.length) hedge = setTimeout(launch, this.#isProven ? HEDGE_MS.proven : HEDGE_MS.unproven);
        this.#attempt(node, method, request, giveUpMs, stop.signal).then(
          (answer) => {
            this.#prefer(node);
            resolve(answer);
          },
          (error: unknown) => {
            running--;
            if (!(error instanceof EtcdFault) || !error.isTransient) {
              reject(error);
              return;
            }
            faults.push(error);
            if (!stop.signal.aborted) this.#demote(node);
            if (next < nodes.length && !stop.signal.aborted) {
              clearTimeout(hedge);
              launch();
            } else if (running === 0) reject(together(faults));
          },
        );
      };
      launch();
    });
    return race.finally(() => {
      clearTimeout(hedge);
      outer?.removeEventListener('abort', onAbort);
      stop.abort();
    });
  }

  /** One call at one endpoint; a token that has run out is renewed once. */
  async #attempt<M extends MethodName>(
    node: Node,
    method: M,
    request: Methods[M][0],
    giveUpMs: number,
    signal: AbortSignal | undefined,
  ): Promise<Methods[M][1]> {
    const grpc = await this.#grpc;
    const isLogin = method === 'authenticate';
    const token = isLogin ? undefined : this.#login(giveUpMs);
    try {
      return await this.#unary(grpc, node, method, request, await token, giveUpMs, signal);
    } catch (error) {
      if (isLogin || !(error instanceof EtcdFault) || !this.#wantsLogin(error)) throw error;
      if (this.#token === token) this.#token = undefined;
      return this.#unary(grpc, node, method, request, await this.#login(giveUpMs), giveUpMs, signal);
    }
  }

  #unary<M extends MethodName>(
    grpc: typeof Grpc,
    node: Node,
    method: M,
    request: Methods[M][0],
    token: string | undefined,
    giveUpMs: number,
    signal: AbortSignal | undefined,
  ): Promise<Methods[M][1]> {
    const { path, serialize, deserialize } = METHODS[method];
    const { url } = node.endpoint;
    const startedMs = performance.now();
    const timeoutMs = Math.max(1, giveUpMs - startedMs);
    return new Promise((resolve, reject) => {
      if (signal?.aborted || this.#isClosed) {
        reject(new EtcdFault('unreachable', url, 'the call was cancelled'));
        return;
      }
      const metadata = new grpc.Metadata();
      if (token !== undefined) metadata.set('token', token);
      this.counters.requests++;
      const call = this.#client(grpc, node).makeUnaryRequest(
        path,
        serialize,
        deserialize,
        request,
        metadata,
        { deadline: Date.now() + timeoutMs },
        (error, answer) => {
          signal?.removeEventListener('abort', onAbort);
          this.counters.requestSecondsTotal += (performance.now() - startedMs) / 1000;
          if (error === null) {
            resolve(answer as Methods[M][1]);
            return;
          }
          const fault = faultOf(error, url, timeoutMs);
          if (!signal?.aborted) {
            this.counters.requestErrors++;
            this.#failed(node, fault);
          }
          reject(fault);
        },
      );
      const onAbort = (): void => call.cancel();
      signal?.addEventListener('abort', onAbort, { once: true });
    });
  }

  /** The present token; undefined without a user name, and where etcd has no authentication to do. */
  #login(giveUpMs: number): Promise<string | undefined> {
    const { username, password } = this.#options;
    if (username === undefined || password === undefined) return Promise.resolve(undefined);
    if (this.#token) return this.#token;
    this.counters.logins++;
    const login = this.#race('authenticate', { name: username, password }, giveUpMs, undefined).then(
      ({ token }) => token,
      (error: unknown) => {
        if (error instanceof EtcdFault && error.kind === 'no-auth') return undefined;
        if (this.#token === login) this.#token = undefined;
        throw error;
      },
    );
    this.#token = login;
    return login;
  }

  #wantsLogin(fault: EtcdFault): boolean {
    if (this.#options.username === undefined) return false;
    // "user name is empty": authentication was switched on after we had been told that there is none.
    return fault.kind === 'token' || /user name is empty/.test(fault.message);
  }

  #client(grpc: typeof Grpc, node: Node): Grpc.Client {
    const { authority, address } = node.endpoint;
    const options = { ...CHANNEL_OPTIONS, ...(address !== undefined && { 'grpc.ssl_target_name_override': NO_NAME }) };
    return (node.client ??= new grpc.Client(`dns:${authority}`, this.#credentials(grpc, node), options));
  }

  #credentials(grpc: typeof Grpc, node: Node): Grpc.ChannelCredentials {
    if (!node.endpoint.isTls) return grpc.credentials.createInsecure();
    this.#tlsMaterial ??= this.#options.tls?.read();
    const { ca = null, key = null, cert = null } = this.#tlsMaterial ?? {};
    const { address } = node.endpoint;
    if (address === undefined) return grpc.credentials.createSsl(ca, key, cert);
    return grpc.credentials.createSsl(ca, key, cert, {
      checkServerIdentity: (_name, certificate) => checkServerIdentity(address, certificate),
    });
  }

  /** Certificates are renewed on disk while we run: a failing TLS endpoint gets what is there now. */
  #failed(node: Node, fault: EtcdFault): void {
    const { tls } = this.#options;
    if (fault.kind !== 'unreachable' || !node.endpoint.isTls || !tls?.hasChanged()) return;
    try {
      this.#tlsMaterial = tls.read();
      this.#closeClients();
    } catch {
      // Half written: they are looked at again at the next failure.
    }
  }

  #closeClients(): void {
    for (const node of this.#nodes) {
      node.client?.close();
      node.client = undefined;
    }
  }

  #prefer(node: Node): void {
    this.#isProven = true;
    if (this.#nodes[0] === node) return;
    this.counters.endpointSwitches++;
    this.#nodes = [node, ...this.#nodes.filter((other) => other !== node)];
  }

  #demote(node: Node): void {
    if (this.#nodes[0] !== node) return;
    this.#isProven = false;
    if (this.#nodes.length > 1) this.counters.endpointSwitches++;
    this.#nodes = [...this.#nodes.slice(1), node];
  }
}

function together(faults: readonly EtcdFault[]): EtcdFault {
  const [first] = faults;
  if (first === undefined || faults.length === 1) return first ?? new EtcdFault('unreachable', 'etcd', 'no endpoint');
  const kind = faults.some((fault) => fault.kind === 'unreachable') ? 'unreachable' : 'unable';
  const reasons = faults.map((fault) => `${fault.endpoint}: ${fault.message}`).join('; ');
  return new EtcdFault(kind, `all ${faults.length} etcd endpoints failed`, reasons, first);
}
