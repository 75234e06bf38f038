/**
 * Where etcd is and how to reach it, checked before anything is sent: endpoints, certificates, credentials.
 */
import { createPrivateKey, X509Certificate } from 'node:crypto';
import { readFileSync, statSync } from 'node:fs';
import { isIP } from 'node:net';
import { messageOf, PodwireError } from '../../../errors.js';

export interface ConnectionOptions {
  readonly endpoints: readonly string[];
  readonly caFile?: string;
  readonly certFile?: string;
  readonly keyFile?: string;
  readonly username?: string;
  readonly password?: string;
}

export interface Endpoint {
  /** For messages: `http://10.0.0.1:2379`. */
  readonly url: string;
  /** `host:port`, an IPv6 host in brackets. */
  readonly authority: string;
  /** The host, where it is an IP address. */
  readonly address?: string;
  readonly isTls: boolean;
}

/** Certificates as the TLS library takes them. */
export interface TlsMaterial {
  readonly ca: Buffer | null;
  readonly cert: Buffer | null;
  readonly key: Buffer | null;
}

const DEFAULT_PORT = '2379';

/**
 * The endpoints of a list, which may itself hold lists separated by commas as flannel's flag does.
 *
 * `http://` never uses TLS, `https://` always; without a scheme TLS is used when there is a client certificate, as in
 * flannel.
 * @throws PodwireError INVALID_ARGUMENT naming the first endpoint that cannot be one.
 */
export function parseEndpoints(options: ConnectionOptions): Endpoint[] {
  const texts = options.endpoints.flatMap((text) => text.split(',')).map((text) => text.trim());
  const endpoints = texts.filter((text) => text !== '').map((text) => parseEndpoint(text, options));
  if (endpoints.length === 0) {
    throw new PodwireError('INVALID_ARGUMENT', 'no etcd endpoint is given; give one like http://127.0.0.1:2379');
  }
  return endpoints.filter((one, i) => endpoints.findIndex((other) => other.url === one.url) === i);
}

function parseEndpoint(text: string, options: ConnectionOptions): Endpoint {
  const refuse = (why: string): PodwireError => {
    // What stands before an @ may be a password.
    const shown = JSON.stringify(text.replace(/\/\/.*@/, '//…@').slice(0, 100));
    return new PodwireError('INVALID_ARGUMENT', `etcd endpoint ${shown} ${why}; write it like http://10.0.0.1:2379`);
  };
  const scheme = /^([a-z][a-z0-9+.-]*):\/\//i.exec(text)?.[1]?.toLowerCase();
  if (scheme !== undefined && scheme !== 'http' && scheme !== 'https') {
    throw refuse(`has the scheme ${scheme}, which is neither http nor https`);
  }
  const isTls = scheme === 'https' || (scheme === undefined && options.certFile !== undefined);
  let url: URL;
  try {
    // The scheme of the URL only serves to parse it: neither default port may be dropped.
    url = new URL(`etcd://${scheme === undefined ? text : text.slice(scheme.length + 3)}`);
  } catch {
    throw refuse('is not host:port');
  }
  if (url.username !== '' || url.password !== '') throw refuse('has a user name in it, which has options of its own');
  if ((url.pathname !== '' && url.pathname !== '/') || url.search !== '' || url.hash !== '') {
    throw refuse('has a path behind the port');
  }
  if (url.hostname === '' || /[^\w.:[\]-]/.test(url.hostname)) throw refuse('has no host name or address');
  if (url.port === '0') throw refuse('has port 0');
  const authority = `${url.hostname}:${url.port === '' ? DEFAULT_PORT : url.port}`;
  const host = url.hostname.replace(/^\[(.*)\]$/, '$1');
  return {
    url: `${isTls ? 'https' : 'http'}://${authority}`,
    authority,
    isTls,
    ...(isIP(host) !== 0 && { address: host }),
  };
}

/** @throws PodwireError INVALID_ARGUMENT for one credential without the other. */
export function checkCredentials({ username, password }: ConnectionOptions): void {
  if ((username ?? '') === '' && (password ?? '') !== '') {
    throw new PodwireError('INVALID_ARGUMENT', 'an etcd password is given without a user name; give both or neither');
  }
  if ((username ?? '') !== '' && (password ?? '') === '') {
    throw new PodwireError(
      'INVALID_ARGUMENT',
      `etcd user ${JSON.stringify(username)} has no password; give both or neither`,
    );
  }
}

/** What the operator should know about connections that are less safe than they may seem; flannel only logs the first. */
export function safetyRemarks(options: ConnectionOptions, endpoints: readonly Endpoint[]): string[] {
  const plain = endpoints.filter(({ isTls }) => !isTls).map(({ url }) => url);
  if (plain.length === 0) return [];
  const remarks: string[] = [];
  if (options.caFile !== undefined || options.certFile !== undefined) {
    remarks.push(`the etcd certificates are not used for ${plain.join(', ')}; write https:// to use them`);
  }
  const isRemote = endpoints.some(({ isTls, authority }) => !isTls && !/^(127\.|localhost:|\[::1\])/.test(authority));
  if ((options.username ?? '') !== '' && isRemote) {
    remarks.push(`the etcd password crosses the network in clear text to ${plain.join(', ')}; use https://`);
  }
  return remarks;
}

/** The certificate files, read when first needed and again when one of them has changed. */
export class TlsFiles {
  readonly #options: ConnectionOptions;
  #stamp = '';

  /** @throws PodwireError INVALID_ARGUMENT for files that cannot be used. */
  constructor(options: ConnectionOptions) {
    this.#options = options;
    if ((options.certFile === undefined) !== (options.keyFile === undefined)) {
      const [given, lacking] = options.certFile === undefined ? ['key', 'certificate'] : ['certificate', 'key'];
      throw new PodwireError('INVALID_ARGUMENT', `an etcd client ${given} is given without its ${lacking}; give both`);
    }
    this.read();
  }

  /** @throws PodwireError INVALID_ARGUMENT. */
  read(): TlsMaterial {
    this.#stamp = this.#look();
    const { caFile, certFile, keyFile } = this.#options;
    const ca = caFile === undefined ? null : readPem(caFile, 'CA', checkCertificate);
    const cert = certFile === undefined ? null : readPem(certFile, 'certificate', checkCertificate);
    const key = keyFile === undefined ? null : readPem(keyFile, 'key', (pem) => void createPrivateKey(pem));
    if (cert && key && !new X509Certificate(cert).checkPrivateKey(createPrivateKey(key))) {
      throw new PodwireError(
        'INVALID_ARGUMENT',
        `the etcd client key ${keyFile} is not the key of the certificate ${certFile}`,
      );
    }
    return { ca, cert, key };
  }

  /** Whether a file is another than at the last {@link read}. */
  hasChanged(): boolean {
    return this.#look() !== this.#stamp;
  }

  #look(): string {
    const { caFile, certFile, keyFile } = this.#options;
    return [caFile, certFile, keyFile]
      .map((path) => {
        const info = path === undefined ? undefined : statSync(path, { throwIfNoEntry: false });
        return info ? `${info.ino}:${info.size}:${info.mtimeMs}` : '';
      })
      .join(' ');
  }
}

function readPem(path: string, what: string, check: (pem: Buffer) => void): Buffer {
  let doing = 'read';
  try {
    const pem = readFileSync(path);
    doing = 'use';
    check(pem);
    return pem;
  } catch (error) {
    // Node's message for a missing file repeats path and call, OpenSSL's has its own codes.
    const reason = messageOf(error).replace(/, (open|read) .*$/, '');
    throw new PodwireError('INVALID_ARGUMENT', `cannot ${doing} the etcd ${what} file ${path}: ${reason}`, {
      cause: error,
    });
  }
}

function checkCertificate(pem: Buffer): void {
  void new X509Certificate(pem);
}
