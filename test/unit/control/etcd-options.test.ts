import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { etcdStore, type EtcdStoreOptions } from '../../../src/control/stores/etcd.js';
import { EtcdFault, faultOf, toPodwireError } from '../../../src/control/stores/etcd/faults.js';
import { EtcdKeys } from '../../../src/control/stores/etcd/keys.js';
import { parseEndpoints, safetyRemarks } from '../../../src/control/stores/etcd/settings.js';

const ENDPOINT = 'http://127.0.0.1:2379';

describe('etcd endpoints', () => {
  it.each([
    ['http://10.0.0.1:2379', 'http://10.0.0.1:2379'],
    ['https://etcd.example:1234/', 'https://etcd.example:1234'],
    ['http://etcd-0', 'http://etcd-0:2379'],
    ['HTTP://10.0.0.1:80', 'http://10.0.0.1:80'],
    ['https://[fd00::1]:443', 'https://[fd00::1]:443'],
    ['10.0.0.1:2379', 'http://10.0.0.1:2379'],
    [' http://a:1 , http://b:2,', 'http://a:1,http://b:2'],
    ['http://a:1,http://a:1/', 'http://a:1'],
  ])('%s', (text, urls) => {
    expect(
      parseEndpoints({ endpoints: [text] })
        .map(({ url }) => url)
        .join(),
    ).toBe(urls);
  });

  it('without a scheme use TLS when there is a client certificate, as in flannel; with one as it says', () => {
    const options = { certFile: 'c', keyFile: 'k', endpoints: ['a:1', 'http://b:2', 'https://c:3'] };
    expect(parseEndpoints(options).map(({ url }) => url)).toEqual(['https://a:1', 'http://b:2', 'https://c:3']);
  });

  it.each([
    [[], /no etcd endpoint is given/],
    [[' ,'], /no etcd endpoint is given/],
    [['unix:///run/etcd'], /"unix:\/\/\/run\/etcd" has the scheme unix/],
    [['http://'], /"http:\/\/" /],
    [['http://a:99999'], /"http:\/\/a:99999" is not host:port/],
    [['http://a:0'], /has port 0/],
    [['http://a:1/path'], /has a path/],
    [['http://a:1?x=y'], /has a path/],
    [['http://a b:1'], /is not host:port|no host name/],
    [['http://root:hunter2@a:1'], /^(?!.*hunter2).*has a user name in it/],
  ])('%j is refused', (endpoints, message) => {
    const open = (): unknown => etcdStore({ endpoints });
    expect(open).toThrow(
      expect.objectContaining({ code: 'INVALID_ARGUMENT', message: expect.stringMatching(message) }),
    );
  });
});

describe('etcd prefix', () => {
  it.each([
    ['/coreos.com/network', '/coreos.com/network/subnets'],
    ['/coreos.com/network/', '/coreos.com/network/subnets'],
    ['//coreos.com//network/.', '/coreos.com/network/subnets'],
    ['coreos.com/network', 'coreos.com/network/subnets'],
    ['/', '/subnets'],
    ['/a/../b', '/b/subnets'],
  ])('%s', (prefix, path) => {
    expect(new EtcdKeys(prefix).subnetsPath).toBe(path);
  });

  it('covers what flanneld lists: everything that starts with the string', () => {
    const { first, end } = new EtcdKeys('/p');
    for (const key of ['/p/subnets', '/p/subnets/1', '/p/subnets-old/x']) {
      expect(Buffer.from(key).compare(first)).toBeGreaterThanOrEqual(0);
      expect(Buffer.from(key).compare(end)).toBeLessThan(0);
    }
    for (const key of ['/p/subnet', '/p/subnett', '/p/config']) {
      expect(Buffer.from(key).compare(first) < 0 || Buffer.from(key).compare(end) >= 0).toBe(true);
    }
  });

  it.each(['', ' ', '/a\nb', '/a\u0000'])('%j is refused', (prefix) => {
    expect(() => etcdStore({ endpoints: [ENDPOINT], prefix })).toThrow(
      expect.objectContaining({ code: 'INVALID_ARGUMENT' }),
    );
  });

  it.each([
    ['/p/subnets-old/10.42.5.0-24', '10.42.5.0/24'],
    ['/p/subnets/x10.42.5.7-24', '10.42.5.0/24'],
    ['/p/subnets/10.42.5.0-24/hb', undefined],
    ['/p/subnets/10.42.5.0-24.bak', undefined],
    ['/p/subnets/10.42.5.0-32', undefined],
    ['/p/subnets/10.42.5.0-24', undefined],
  ])('%s keeps %s from being given out', (key, subnet) => {
    const keys = new EtcdKeys('/p');
    expect(keys.heldByFlannel(keys.nameOf(Buffer.from(key)))?.subnet.toString()).toBe(subnet);
  });
});

describe('etcd credentials and certificates', () => {
  let directory: string;
  const path = (name: string): string => join(directory, name);

  beforeAll(async () => {
    directory = await mkdtemp(join(tmpdir(), 'pwet-options-'));
    await writeFile(path('junk.pem'), 'no certificate');
  });
  afterAll(() => rm(directory, { recursive: true, force: true }));

  it.each<[string, () => Partial<EtcdStoreOptions>, RegExp]>([
    ['a password alone', () => ({ password: 'hunter2' }), /^(?!.*hunter2).*without a user name/],
    ['a user alone', () => ({ username: 'u' }), /"u" has no password/],
    ['a certificate alone', () => ({ certFile: path('junk.pem') }), /client certificate is given without its key/],
    ['a key alone', () => ({ keyFile: path('junk.pem') }), /client key is given without its certificate/],
    ['a missing CA', () => ({ caFile: path('none.pem') }), /cannot read the etcd CA file .*none\.pem: ENOENT/],
    ['a CA that is none', () => ({ caFile: path('junk.pem') }), /cannot use the etcd CA file .*junk\.pem/],
    ['a directory', () => ({ caFile: directory }), /cannot read the etcd CA file/],
    [
      'a certificate that is none',
      () => ({ certFile: path('junk.pem'), keyFile: path('junk.pem') }),
      /cannot use the etcd certificate file/,
    ],
  ])('%s is refused in one line', (_what, options, message) => {
    const open = (): unknown => etcdStore({ endpoints: ['https://127.0.0.1:2379'], ...options() });
    expect(open).toThrow(
      expect.objectContaining({ code: 'INVALID_ARGUMENT', message: expect.stringMatching(message) }),
    );
  });

  it('are not looked at where no endpoint uses them, as in flannel', () => {
    expect(etcdStore({ endpoints: [ENDPOINT], caFile: path('none.pem') }).description).toBe(
      `etcd ${ENDPOINT} /coreos.com/network`,
    );
  });
});

describe('etcd durations', () => {
  it.each([
    ['requestTimeoutMs', 0],
    ['progressMs', -1],
    ['ttlMs', Number.NaN],
  ])('%s %d is refused', (name, ms) => {
    expect(() => etcdStore({ endpoints: [ENDPOINT], [name]: ms })).toThrow(
      expect.objectContaining({ code: 'INVALID_ARGUMENT', message: expect.stringContaining(name) }),
    );
  });
});

describe('remarks on safety', () => {
  const remarks = (endpoint: string, more: Partial<EtcdStoreOptions>): string[] => {
    const options = { endpoints: [endpoint], ...more };
    return safetyRemarks(options, parseEndpoints(options));
  };

  it.each<[string, Partial<EtcdStoreOptions>, RegExp[]]>([
    ['http://10.0.0.1:2379', { caFile: 'ca' }, [/certificates are not used for http:\/\/10\.0\.0\.1:2379/]],
    ['10.0.0.1:2379', { caFile: 'ca' }, [/certificates are not used/]],
    ['10.0.0.1:2379', { certFile: 'c', keyFile: 'k' }, []],
    ['https://10.0.0.1:2379', { caFile: 'ca', username: 'u', password: 'p' }, []],
    ['http://10.0.0.1:2379', { username: 'u', password: 'p' }, [/password crosses the network in clear text/]],
    ['http://127.0.0.1:2379', { username: 'u', password: 'p' }, []],
    ['http://[::1]:2379', { username: 'u', password: 'p' }, []],
  ])('%s with %j', (endpoint, more, expected) => {
    expect(remarks(endpoint, more)).toEqual(expected.map((each) => expect.stringMatching(each)));
  });
});

describe('etcd faults', () => {
  it.each([
    [14, 'No connection established. Last error: connect ECONNREFUSED 127.0.0.1:1. Resolution note: ', 'unreachable'],
    [14, 'etcdserver: no leader', 'unable'],
    [14, 'etcdserver: request timed out', 'unable'],
    [4, 'Deadline exceeded after 5s', 'unreachable'],
    [8, 'etcdserver: mvcc: database space exceeded', 'unable'],
    [16, 'etcdserver: invalid auth token', 'token'],
    [3, 'etcdserver: revision in header is old', 'token'],
    [3, 'etcdserver: user name is empty', 'denied'],
    [3, 'etcdserver: authentication failed, invalid user ID or password', 'denied'],
    [7, 'etcdserver: permission denied', 'denied'],
    [9, 'etcdserver: authentication is not enabled', 'no-auth'],
    [5, 'etcdserver: requested lease not found', 'no-lease'],
    [9, 'etcdserver: lease already exists', 'lease-exists'],
    [11, 'etcdserver: mvcc: required revision has been compacted', 'compacted'],
    [3, 'etcdserver: request is too large', 'refused'],
    [12, 'unknown service etcdserverpb.KV', 'refused'],
  ])('status %i %j is %s', (code, details, kind) => {
    const fault = faultOf({ code, details }, ENDPOINT, 5000);
    expect(fault.kind).toBe(kind);
    const error = toPodwireError(fault, 'renew a lease', {});
    expect(error.message).toMatch(/^cannot renew a lease: http:\/\/127\.0\.0\.1:2379: [^\n]+$/);
    expect(error.code).toBe(kind === 'denied' || kind === 'no-auth' ? 'PERMISSION' : 'STORE_UNAVAILABLE');
  });

  it('of something that is no fault of etcd keeps its message', () => {
    expect(toPodwireError(new TypeError('oops'), 'renew a lease', {}).message).toBe('cannot renew a lease: oops');
    const fault = new EtcdFault('unreachable', ENDPOINT, 'no answer');
    expect(toPodwireError(fault, 'x', {}).cause).toBe(fault);
  });
});
