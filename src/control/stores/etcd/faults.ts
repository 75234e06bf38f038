/**
 * What went wrong with a call to etcd, and how to say it. Texts of etcd are matched where its status codes are shared
 * by different faults.
 */
import { messageOf, PodwireError } from '../../../errors.js';

/**
 * - `unreachable`: no answer from this endpoint; another may do, and a write may have been done all the same
 * - `unable`: etcd answered that it cannot at present (no leader, no space)
 * - `token`: log in again and repeat
 * - `denied`: wrong or lacking credentials or permission
 * - `compacted`, `no-lease`, `lease-exists`, `no-auth`: what the caller must handle
 * - `refused`: anything else etcd will not do
 */
export type FaultKind =
  'unreachable' | 'unable' | 'token' | 'denied' | 'compacted' | 'no-lease' | 'lease-exists' | 'no-auth' | 'refused';

/** A failed call at one endpoint. Stays inside the etcd store; {@link toPodwireError} is what leaves it. */
export class EtcdFault extends Error {
  readonly kind: FaultKind;
  readonly endpoint: string;

  constructor(kind: FaultKind, endpoint: string, reason: string, cause?: unknown) {
    super(reason, cause === undefined ? undefined : { cause });
    this.kind = kind;
    this.endpoint = endpoint;
  }

  /** Whether the same call may succeed a little later, here or elsewhere. */
  get isTransient(): boolean {
    return this.kind === 'unreachable' || this.kind === 'unable';
  }
}

/** gRPC status codes, by number because the library is loaded late. */
const STATUS = {
  CANCELLED: 1,
  UNKNOWN: 2,
  INVALID_ARGUMENT: 3,
  DEADLINE_EXCEEDED: 4,
  NOT_FOUND: 5,
  PERMISSION_DENIED: 7,
  RESOURCE_EXHAUSTED: 8,
  ABORTED: 10,
  OUT_OF_RANGE: 11,
  UNIMPLEMENTED: 12,
  INTERNAL: 13,
  UNAVAILABLE: 14,
  DATA_LOSS: 15,
  UNAUTHENTICATED: 16,
} as const;

const BY_TEXT: readonly [RegExp, FaultKind][] = [
  [/invalid auth token|revision in header is old|auth store is old/, 'token'],
  [/authentication is not enabled/, 'no-auth'],
  [/user name is empty|authentication failed|user name not found|permission denied|user or role/, 'denied'],
  [/has been compacted/, 'compacted'],
  [/requested lease not found/, 'no-lease'],
  [/lease already exists/, 'lease-exists'],
  [/no leader|request timed out|too many requests|leader changed|space exceeded|corrupt|not capable|stopped/, 'unable'],
];

const BY_CODE: Readonly<Record<number, FaultKind>> = {
  [STATUS.CANCELLED]: 'unreachable',
  [STATUS.UNKNOWN]: 'unreachable',
  [STATUS.DEADLINE_EXCEEDED]: 'unreachable',
  [STATUS.PERMISSION_DENIED]: 'denied',
  [STATUS.ABORTED]: 'unable',
  [STATUS.INTERNAL]: 'unreachable',
  [STATUS.UNAVAILABLE]: 'unreachable',
  [STATUS.RESOURCE_EXHAUSTED]: 'unable',
  [STATUS.DATA_LOSS]: 'unable',
  [STATUS.UNAUTHENTICATED]: 'token',
};

/** A gRPC status as a fault of `endpoint`; `waitedMs` is how long the call was given. */
export function faultOf(error: unknown, endpoint: string, waitedMs: number): EtcdFault {
  const { code, details } = statusOf(error);
  const text = details.replace(/^etcdserver: /, '');
  const kind = BY_TEXT.find(([pattern]) => pattern.test(text))?.[1] ?? BY_CODE[code] ?? 'refused';
  if (code === STATUS.DEADLINE_EXCEEDED && !details.startsWith('etcdserver')) {
    return new EtcdFault('unreachable', endpoint, `no answer within ${Math.round(waitedMs)} ms`, error);
  }
  if (code === STATUS.UNIMPLEMENTED) {
    return new EtcdFault('refused', endpoint, `${text}; is this etcd 3.4 or later?`, error);
  }
  return new EtcdFault(kind, endpoint, kind === 'unreachable' ? connectionReason(text) : text, error);
}

/** The error that leaves the store. `what` completes "cannot …". */
export function toPodwireError(error: unknown, what: string, context: { username?: string | undefined }): PodwireError {
  if (error instanceof PodwireError) return error;
  if (!(error instanceof EtcdFault)) {
    return new PodwireError('SYSTEM', `cannot ${what}: ${messageOf(error)}`, { cause: error });
  }
  const where = `${error.endpoint}: `;
  const text = `cannot ${what}: ${where}${error.message}${advice(error, context)}`;
  const code = error.kind === 'denied' || error.kind === 'no-auth' ? 'PERMISSION' : 'STORE_UNAVAILABLE';
  return new PodwireError(code, text, { cause: error });
}

function advice(fault: EtcdFault, { username }: { username?: string | undefined }): string {
  const text = fault.message;
  if (/user name is empty/.test(text)) return '; etcd demands a login: give --etcd-username and --etcd-password';
  if (/authentication failed/.test(text)) return `; user ${JSON.stringify(username)} or its password is wrong`;
  if (/permission denied/.test(text)) {
    const who = username === undefined ? 'the client' : `user ${JSON.stringify(username)}`;
    return `; ${who} needs a role with readwrite on the whole prefix`;
  }
  if (/space exceeded/.test(text)) return '; compact and defragment etcd, then disarm its alarm';
  if (/ECONNREFUSED/.test(text)) return '; is etcd running there?';
  if (/wrong version number|packet length too long/.test(text)) return '; it seems to speak no TLS: use http://';
  if (/self-signed|unable to get (local )?issuer|unable to verify/.test(text)) return '; give the right --etcd-cafile';
  if (/alert (bad certificate|certificate required|unknown ca|handshake failure)/i.test(text)) {
    return '; give a client certificate that etcd trusts';
  }
  if (fault.endpoint.startsWith('https') && /connection broke|before secure TLS/.test(text)) {
    return '; is TLS spoken there, and is our certificate accepted?';
  }
  if (text.startsWith('host name') || fault.kind === 'refused') return '';
  return '; try again';
}

/** What the gRPC library wraps in sentences of its own. */
function connectionReason(text: string): string {
  const last = /Last error: (.*?)(?:\. Resolution note: .*)?$/s.exec(text)?.[1];
  const reason = (last ?? text)
    .replace(/\s+/g, ' ')
    .replace(/^Error: /, '')
    .trim();
  if (/Connection dropped|ECONNRESET|RST_STREAM|GOAWAY|Stream closed|socket hang up/i.test(reason)) {
    return `the connection broke (${reason})`;
  }
  if (reason.startsWith('Name resolution failed')) return 'host name not found';
  // OpenSSL: "error:0A00010B:SSL routines:ssl3_get_record:wrong version number:file.c:355:".
  const ssl = /(?:^|: ?|[0-9A-F]+:)error:[0-9A-F]+:SSL routines:[^:]*:([^:]+):/i.exec(reason)?.[1];
  return ssl ?? reason;
}

function statusOf(error: unknown): { code: number; details: string } {
  if (typeof error === 'object' && error !== null && 'code' in error && typeof error.code === 'number') {
    const details = 'details' in error && typeof error.details === 'string' ? error.details : '';
    return { code: error.code, details: details === '' && error instanceof Error ? error.message : details };
  }
  return { code: STATUS.UNKNOWN, details: error instanceof Error ? error.message : String(error) };
}
