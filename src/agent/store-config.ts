/**
 * Which lease store the flags mean. Without `--store` it is etcd, as with flanneld.
 *
 * Nothing here ever shows a secret: not the password, and of an endpoint never what stands before an `@`.
 */
import { resolve } from 'node:path';
import type { EtcdStoreOptions } from '../control/stores/etcd.js';
import { PodwireError } from '../errors.js';
import { FlagReader, type FlagValues } from './flag-reader.js';
import { FLAGS } from './flags.js';

export type StoreConfig =
  { readonly kind: 'directory'; readonly path: string } | { readonly kind: 'etcd'; readonly options: EtcdStoreOptions };

/**
 * The store alone, for commands that are not the agent.
 *
 * @throws {PodwireError} `INVALID_ARGUMENT`; `warnings` are lines for the operator.
 */
export function readStoreConfig(
  given: FlagValues,
  environment: NodeJS.ProcessEnv,
): { readonly store: StoreConfig; readonly warnings: readonly string[] } {
  const read = new FlagReader(given, environment);
  const warnings: string[] = [];
  return { store: readStore(read, warnings), warnings };
}

/** @throws {PodwireError} `INVALID_ARGUMENT`. */
export function readStore(read: FlagReader, warnings: string[]): StoreConfig {
  const text = read.optional('store') ?? 'etcd';
  if (text === 'etcd') return { kind: 'etcd', options: readEtcd(read, warnings) };
  if (!text.startsWith('dir:')) {
    const shown = withoutUserInfo(text);
    const hint = shown.startsWith('etcd:') ? ' and give the servers with --etcd-endpoints' : '';
    throw new PodwireError(
      'INVALID_ARGUMENT',
      `${read.origin('store')} ${JSON.stringify(shown)} is no lease store: write etcd${hint}, or dir:PATH for a directory`,
    );
  }
  const path = text.slice('dir:'.length);
  if (path === '' || path.includes('\0')) {
    throw read.refusal('store', 'names no directory: write dir:/path/to/store');
  }
  for (const { section, name } of FLAGS) {
    if (section === 'etcd' && read.isChanged(name)) {
      warnings.push(`${read.origin(name)} has no effect: the leases are in --store ${text}`);
    }
  }
  return { kind: 'directory', path: resolve(path) };
}

function readEtcd(read: FlagReader, warnings: string[]): EtcdStoreOptions {
  const given = (name: string): string | undefined => read.optional(name);
  const [caFile, certFile, keyFile] = [given('etcd-cafile'), given('etcd-certfile'), given('etcd-keyfile')];
  if ((certFile === undefined) !== (keyFile === undefined)) {
    const [there, missing] = certFile === undefined ? ['keyfile', 'certfile'] : ['certfile', 'keyfile'];
    throw new PodwireError('INVALID_ARGUMENT', `${read.origin(`etcd-${there}`)} needs --etcd-${missing} too`);
  }
  const [username, password] = [given('etcd-username'), given('etcd-password')];
  if ((username === undefined) !== (password === undefined)) {
    const [there, missing] = username === undefined ? ['password', 'username'] : ['username', 'password'];
    warnings.push(
      `${read.origin(`etcd-${there}`)} without --etcd-${missing}: etcd is asked without a user, as flanneld does`,
    );
  }
  const prefix = read.list('etcd-prefix').at(-1) ?? read.text('etcd-prefix');
  if (!/[^/]/.test(prefix)) {
    throw new PodwireError(
      'INVALID_ARGUMENT',
      `${read.origin('etcd-prefix')} is empty: write it like /coreos.com/network`,
    );
  }
  // A server without a scheme is asked with TLS when there is a client certificate, as in flannel.
  const endpoints = readEndpoints(read, certFile !== undefined);
  if ((caFile ?? certFile) !== undefined && endpoints.every((endpoint) => endpoint.startsWith('http:'))) {
    warnings.push(`the etcd certificates have no effect: every endpoint is http, ${endpoints.join(', ')}`);
  }
  return {
    endpoints,
    prefix,
    ...(caFile === undefined ? {} : { caFile: resolve(caFile) }),
    ...(certFile === undefined ? {} : { certFile: resolve(certFile) }),
    ...(keyFile === undefined ? {} : { keyFile: resolve(keyFile) }),
    ...(username === undefined || password === undefined ? {} : { username, password }),
  };
}

function readEndpoints(read: FlagReader, secure: boolean): string[] {
  const texts = read
    .text('etcd-endpoints')
    .split(',')
    .map((text) => text.trim())
    .filter((text) => text !== '');
  const endpoints = texts.map((text) => {
    const full = text.includes('://') ? text : `${secure ? 'https' : 'http'}://${text}`;
    const match = /^(https?):\/\/(\[[0-9a-f:.%]+\]|[^\s/:@?#[\]]+):(\d{1,5})\/?$/i.exec(full);
    const [, scheme = '', host = '', port = ''] = match ?? [];
    if (match !== null && Number(port) >= 1 && Number(port) <= 65_535) {
      return `${scheme.toLowerCase()}://${host}:${Number(port)}`;
    }
    const problem = full.includes('@')
      ? 'has a user in it: give --etcd-username and --etcd-password'
      : 'is no etcd server: write http://HOST:PORT or https://HOST:PORT';
    const shown = JSON.stringify(withoutUserInfo(text));
    throw new PodwireError('INVALID_ARGUMENT', `${read.origin('etcd-endpoints')}: ${shown} ${problem}`);
  });
  if (endpoints.length > 0) return [...new Set(endpoints)];
  throw new PodwireError(
    'INVALID_ARGUMENT',
    `${read.origin('etcd-endpoints')} names no server: write http://HOST:PORT`,
  );
}

/** What may be shown of a URL or of something that should have been one. */
function withoutUserInfo(text: string): string {
  const at = text.lastIndexOf('@');
  return at < 0 ? text : `…@${text.slice(at + 1)}`;
}
