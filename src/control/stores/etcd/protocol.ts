/**
 * The part of etcd's v3 gRPC protocol that the store speaks: messages and methods as in `etcdserverpb/rpc.proto` and
 * `mvccpb/kv.proto` of etcd 3.4 and later. 64-bit numbers are decimal strings, since lease ids use all their bits.
 */
import { decode, encode, type Schema } from './protobuf.js';

export interface ResponseHeader {
  readonly cluster_id: string;
  readonly revision: string;
}

export interface KeyValue {
  readonly key: Buffer;
  readonly create_revision: string;
  /** Revision of the last change; for a deletion event, of the deletion. */
  readonly mod_revision: string;
  readonly value: Buffer;
  /** `'0'`: no lease, so the key never expires. */
  readonly lease: string;
}

export interface RangeRequest {
  readonly key: Buffer;
  /** Exclusive; absent: just `key`. */
  readonly range_end?: Buffer;
  readonly keys_only?: boolean;
}

export interface RangeResponse {
  readonly header: ResponseHeader | null;
  readonly kvs: readonly KeyValue[];
}

export type RequestOp =
  | { readonly request_range: RangeRequest }
  | { readonly request_put: { readonly key: Buffer; readonly value: Buffer; readonly lease: string } }
  | { readonly request_delete_range: { readonly key: Buffer } };

export interface ResponseOp {
  readonly response_range?: RangeResponse;
  readonly response_delete_range?: { readonly deleted: string };
}

export type Compare = { readonly key: Buffer; readonly range_end?: Buffer; readonly result: 'EQUAL' | 'LESS' } & (
  | { readonly target: 'VERSION'; readonly version: number }
  | { readonly target: 'CREATE'; readonly create_revision: number }
  | { readonly target: 'MOD'; readonly mod_revision: number }
);

export interface WatchResponse {
  readonly header: ResponseHeader | null;
  readonly created: boolean;
  readonly canceled: boolean;
  /** Not `'0'`: the events from the start revision to this one are gone. */
  readonly compact_revision: string;
  readonly cancel_reason: string;
  readonly events: readonly { readonly type: 'PUT' | 'DELETE'; readonly kv: KeyValue }[];
}

export type WatchRequest =
  | { readonly create_request: { readonly key: Buffer; readonly range_end: Buffer; readonly start_revision: number } }
  | { readonly progress_request: Record<string, never> };

/** As the id of a lease: none. */
export const NO_LEASE = '0';

/** Writes a key, bound to the etcd lease or to none. */
export function put(key: Buffer, value: Buffer, grant: { readonly id: string } | undefined): RequestOp {
  return { request_put: { key, value, lease: grant?.id ?? NO_LEASE } };
}

/** That a key is as it was read. */
export function unchanged(kv: KeyValue): Compare {
  return { key: kv.key, result: 'EQUAL', target: 'MOD', mod_revision: Number(kv.mod_revision) };
}

/** Request and answer of every unary method. */
export interface Methods {
  range: [RangeRequest, RangeResponse];
  txn: [
    { readonly compare?: readonly Compare[]; readonly success: readonly RequestOp[] },
    { readonly header: ResponseHeader | null; readonly succeeded: boolean; readonly responses: readonly ResponseOp[] },
  ];
  leaseGrant: [{ readonly TTL: number; readonly ID: string }, { readonly ID: string; readonly TTL: string }];
  leaseRevoke: [{ readonly ID: string }, object];
  leaseTimeToLive: [
    { readonly ID: string; readonly keys?: boolean },
    /** TTL in seconds, -1 when the lease is gone; the keys bound to it. */
    { readonly TTL: string; readonly grantedTTL: string; readonly keys: readonly Buffer[] },
  ];
  authenticate: [{ readonly name: string; readonly password: string }, { readonly token: string }];
}

export type MethodName = keyof Methods;

const HEADER = { header: [1, 'ResponseHeader'] } as const;

/** Field numbers and types; fields that the store never uses are left out, which protobuf skips. */
const MESSAGES: Schema['messages'] = {
  ResponseHeader: { cluster_id: [1, 'uint64'], revision: [3, 'int64'] },
  KeyValue: {
    key: [1, 'bytes'],
    create_revision: [2, 'int64'],
    mod_revision: [3, 'int64'],
    value: [5, 'bytes'],
    lease: [6, 'int64'],
  },
  Event: { type: [1, 'EventType'], kv: [2, 'KeyValue'] },
  RangeRequest: { key: [1, 'bytes'], range_end: [2, 'bytes'], keys_only: [8, 'bool'] },
  RangeResponse: { ...HEADER, kvs: [2, 'KeyValue', 'repeated'] },
  PutRequest: { key: [1, 'bytes'], value: [2, 'bytes'], lease: [3, 'int64'] },
  PutResponse: HEADER,
  DeleteRangeRequest: { key: [1, 'bytes'] },
  DeleteRangeResponse: { ...HEADER, deleted: [2, 'int64'] },
  RequestOp: {
    request_range: [1, 'RangeRequest'],
    request_put: [2, 'PutRequest'],
    request_delete_range: [3, 'DeleteRangeRequest'],
  },
  ResponseOp: {
    response_range: [1, 'RangeResponse', 'optional'],
    response_put: [2, 'PutResponse', 'optional'],
    response_delete_range: [3, 'DeleteRangeResponse', 'optional'],
  },
  Compare: {
    result: [1, 'CompareResult'],
    target: [2, 'CompareTarget'],
    key: [3, 'bytes'],
    version: [4, 'int64'],
    create_revision: [5, 'int64'],
    mod_revision: [6, 'int64'],
    range_end: [64, 'bytes'],
  },
  TxnRequest: { compare: [1, 'Compare', 'repeated'], success: [2, 'RequestOp', 'repeated'] },
  TxnResponse: { ...HEADER, succeeded: [2, 'bool'], responses: [3, 'ResponseOp', 'repeated'] },
  WatchRequest: { create_request: [1, 'WatchCreateRequest'], progress_request: [3, 'WatchProgressRequest'] },
  WatchCreateRequest: { key: [1, 'bytes'], range_end: [2, 'bytes'], start_revision: [3, 'int64'] },
  WatchProgressRequest: {},
  WatchResponse: {
    ...HEADER,
    created: [3, 'bool'],
    canceled: [4, 'bool'],
    compact_revision: [5, 'int64'],
    cancel_reason: [6, 'string'],
    events: [11, 'Event', 'repeated'],
  },
  LeaseGrantRequest: { TTL: [1, 'int64'], ID: [2, 'int64'] },
  LeaseGrantResponse: { ...HEADER, ID: [2, 'int64'], TTL: [3, 'int64'] },
  LeaseRevokeRequest: { ID: [1, 'int64'] },
  LeaseRevokeResponse: HEADER,
  LeaseTimeToLiveRequest: { ID: [1, 'int64'], keys: [2, 'bool'] },
  LeaseTimeToLiveResponse: {
    ...HEADER,
    ID: [2, 'int64'],
    TTL: [3, 'int64'],
    grantedTTL: [4, 'int64'],
    keys: [5, 'bytes', 'repeated'],
  },
  AuthenticateRequest: { name: [1, 'string'], password: [2, 'string'] },
  AuthenticateResponse: { ...HEADER, token: [2, 'string'] },
};

/** By number. */
const ENUMS: Schema['enums'] = {
  EventType: ['PUT', 'DELETE'],
  CompareResult: ['EQUAL', 'GREATER', 'LESS', 'NOT_EQUAL'],
  CompareTarget: ['VERSION', 'CREATE', 'MOD', 'VALUE', 'LEASE'],
};

const SCHEMA: Schema = { messages: MESSAGES, enums: ENUMS };

/** How gRPC calls one method. */
export interface MethodCodec {
  readonly path: string;
  readonly serialize: (request: object) => Buffer;
  readonly deserialize: (bytes: Buffer) => object;
}

function method(service: string, name: string): MethodCodec {
  return {
    path: `/etcdserverpb.${service}/${name}`,
    serialize: (request) => encode(SCHEMA, `${name}Request`, request),
    deserialize: (bytes) => decode(SCHEMA, `${name}Response`, bytes),
  };
}

export const METHODS: Readonly<Record<MethodName | 'watch', MethodCodec>> = {
  range: method('KV', 'Range'),
  txn: method('KV', 'Txn'),
  leaseGrant: method('Lease', 'LeaseGrant'),
  leaseRevoke: method('Lease', 'LeaseRevoke'),
  leaseTimeToLive: method('Lease', 'LeaseTimeToLive'),
  authenticate: method('Auth', 'Authenticate'),
  watch: method('Watch', 'Watch'),
};
