import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { ok } from './process.js';

export interface Certificate {
  readonly cert: string;
  readonly key: string;
}

/** A certificate authority in `directory`, made with openssl; valid for one day. */
export async function makeAuthority(directory: string, name: string): Promise<Certificate> {
  const [cert, key] = [join(directory, `${name}.pem`), join(directory, `${name}.key`)];
  const curve = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];
  await openssl('req', '-x509', ...curve, '-days', '1', '-subj', `/CN=${name}`, '-keyout', key, '-out', cert);
  return { cert, key };
}

/** A certificate for servers at `names` (OpenSSL's form) and for clients, signed by `authority`. */
export async function makeCertificate(
  directory: string,
  name: string,
  authority: Certificate,
  names = 'IP:127.0.0.1,DNS:localhost',
): Promise<Certificate> {
  const [cert, key] = [join(directory, `${name}.pem`), join(directory, `${name}.key`)];
  const [request, extensions] = [join(directory, `${name}.csr`), join(directory, `${name}.ext`)];
  await writeFile(extensions, `subjectAltName=${names}\nextendedKeyUsage=serverAuth,clientAuth\n`);
  const curve = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];
  await openssl('req', ...curve, '-subj', `/CN=${name}`, '-keyout', key, '-out', request);
  const signer = ['-CA', authority.cert, '-CAkey', authority.key, '-CAcreateserial', '-days', '1'];
  await openssl('x509', '-req', '-in', request, ...signer, '-extfile', extensions, '-out', cert);
  return { cert, key };
}

async function openssl(...args: string[]): Promise<void> {
  await ok('openssl', args);
}
