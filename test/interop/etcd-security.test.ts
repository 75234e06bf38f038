/** TLS, client certificates and logins of the etcd store, against real etcd; and that no secret is ever said. */
import { copyFile, mkdtemp, readFile, rm, utimes } from 'node:fs/promises';
import type { AddressInfo } from 'node:net';
import { createServer } from 'node:tls';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { inspect } from 'node:util';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import type { LeaseStore, StoreNotice } from '../../src/control/lease.js';
import { etcdStore, type EtcdStoreOptions } from '../../src/control/stores/etcd.js';
import { makeAuthority, makeCertificate, type Certificate } from '../support/certificates.js';
import { EtcdCluster, type EtcdVersion } from '../support/etcd.js';
import { RawEtcd } from '../support/etcd-client.js';
import { attributesOf, Watcher } from '../support/leases.js';
import { until } from '../support/process.js';
import { missing } from '../support/requires.js';
import { TcpProxy } from '../support/tcp-proxy.js';

const VERSIONS: readonly EtcdVersion[] = ['etcd-old', 'etcd-3.6'];
const CONFIG = '{"Network":"10.42.0.0/16"}';
const PASSWORD = 'correct horse battery staple';

describe.skipIf(missing({ counterparts: ['etcd-old', 'etcd-3.6', 'etcdctl'], commands: ['openssl'] }))(
  'security',
  () => {
    const opened: AsyncDisposable[] = [];
    let notices: StoreNotice[] = [];
    let directory: string;

    beforeAll(async () => {
      directory = await mkdtemp(join(tmpdir(), 'pwet-tls-'));
    });
    afterAll(() => rm(directory, { recursive: true, force: true }));
    afterEach(async () => {
      for (const each of opened.splice(0).reverse()) await each[Symbol.asyncDispose]();
      notices = [];
    });

    const open = (options: EtcdStoreOptions): LeaseStore => {
      const store = etcdStore({ requestTimeoutMs: 3_000, onNotice: (notice) => notices.push(notice), ...options });
      opened.push(store);
      return store;
    };
    const failure = (store: LeaseStore): Promise<Error> =>
      store.network().then(
        () => expect.unreachable('the call went well'),
        (error: unknown) => error as Error,
      );

    describe.each(VERSIONS)('TLS with %s', (version) => {
      let cluster: EtcdCluster;
      let ca: Certificate;
      let otherCa: Certificate;
      let client: Certificate;
      let stranger: Certificate;
      const warnings: string[] = [];
      const onWarning = (warning: Error): void => void warnings.push(warning.message);

      beforeAll(async () => {
        process.on('warning', onWarning);
        ca = await makeAuthority(directory, `ca-${version}`);
        otherCa = await makeAuthority(directory, `other-${version}`);
        client = await makeCertificate(directory, `client-${version}`, ca);
        stranger = await makeCertificate(directory, `stranger-${version}`, otherCa);
        cluster = await EtcdCluster.start({ version, tls: { ca: ca.cert, ...client } });
        const raw = new RawEtcd({
          endpoints: cluster.urls,
          caFile: ca.cert,
          certFile: client.cert,
          keyFile: client.key,
        });
        await raw.put('/coreos.com/network/config', CONFIG);
        raw.close();
      });
      afterAll(async () => {
        process.off('warning', onWarning);
        await cluster[Symbol.asyncDispose]();
      });
      const files = (pair: Certificate): Pick<EtcdStoreOptions, 'certFile' | 'keyFile'> => ({
        certFile: pair.cert,
        keyFile: pair.key,
      });

      it('works with a certificate that etcd trusts, by address and by name, without a warning', async () => {
        const store = open({ endpoints: cluster.urls, caFile: ca.cert, ...files(client) });
        const lease = await store.acquire({ attributes: attributesOf('192.0.2.1') });
        await store.release(lease);
        const byName = cluster.urls.map((url) => url.replace('https://127.0.0.1', 'localhost'));
        const named = open({ endpoints: byName, caFile: ca.cert, ...files(client) });
        expect((await named.network()).network?.toString()).toBe('10.42.0.0/16');
        expect(warnings).toEqual([]);
      });

      it('says what is wrong with the certificates of either side', async () => {
        const wrongCa = await failure(open({ endpoints: cluster.urls, caFile: otherCa.cert, ...files(client) }));
        expect(wrongCa).toMatchObject({ code: 'STORE_UNAVAILABLE', message: expect.stringMatching(/--etcd-cafile$/) });
        const unknown = await failure(open({ endpoints: cluster.urls, caFile: ca.cert, ...files(stranger) }));
        expect(unknown).toMatchObject({ code: 'STORE_UNAVAILABLE', message: expect.stringMatching(/certificate/) });
        const none = await failure(open({ endpoints: cluster.urls, caFile: ca.cert }));
        expect(none).toMatchObject({ code: 'STORE_UNAVAILABLE', message: expect.stringMatching(/certificate/) });
        const plain = cluster.urls.map((url) => url.replace('https:', 'http:'));
        expect(await failure(open({ endpoints: plain }))).toMatchObject({ code: 'STORE_UNAVAILABLE' });
        for (const { message } of [wrongCa, unknown, none]) expect(message).not.toMatch(/\n/);
      });

      it('refuses a server whose certificate is for another address', async () => {
        const elsewhere = await makeCertificate(directory, `elsewhere-${version}`, ca, 'IP:192.0.2.1,DNS:etcd');
        const [cert, key] = await Promise.all([readFile(elsewhere.cert), readFile(elsewhere.key)]);
        const server = createServer({ cert, key, ALPNProtocols: ['h2'] });
        await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
        const { port } = server.address() as AddressInfo;
        const error = await failure(open({ endpoints: [`https://127.0.0.1:${port}`], caFile: ca.cert }));
        expect(error.message).toMatch(/IP: 127\.0\.0\.1 is not in the cert's list/);
        server.close();
      });

      it('takes renewed certificates from their files', async () => {
        const [cert, key] = [join(directory, 'rotating.pem'), join(directory, 'rotating.key')];
        await copyFile(stranger.cert, cert);
        await copyFile(stranger.key, key);
        const store = open({ endpoints: cluster.urls, caFile: ca.cert, certFile: cert, keyFile: key });
        await failure(store);
        await copyFile(client.cert, cert);
        await copyFile(client.key, key);
        for (const path of [cert, key]) await utimes(path, new Date(), new Date(Date.now() + 5_000));
        const config = await until(() => store.network().catch(() => undefined), {
          what: 'the new certificate to be used',
        });
        expect(config.network?.toString()).toBe('10.42.0.0/16');
      });
    });

    it('says that TLS meets none', async () => {
      const cluster = await EtcdCluster.start();
      opened.push(cluster);
      const tls = cluster.urls.map((url) => url.replace('http:', 'https:'));
      expect(await failure(open({ endpoints: tls }))).toMatchObject({
        code: 'STORE_UNAVAILABLE',
        message: expect.stringMatching(/is TLS spoken there/),
      });
    });

    describe.each(VERSIONS)('logins at %s', (version) => {
      let cluster: EtcdCluster;
      const root = { username: 'root', password: 'root password' };
      const user = { username: 'podwire', password: PASSWORD };

      beforeAll(async () => {
        cluster = await EtcdCluster.start({ version });
        const raw = new RawEtcd({ endpoints: cluster.urls });
        await raw.put('/coreos.com/network/config', CONFIG);
        raw.close();
        await cluster.ctl(['user', 'add', `${root.username}:${root.password}`]);
        await cluster.ctl(['user', 'grant-role', 'root', 'root']).catch(() => cluster.ctl(['role', 'add', 'root']));
        await cluster.ctl(['user', 'grant-role', 'root', 'root']);
        for (const name of [user.username, 'nobody']) await cluster.ctl(['user', 'add', `${name}:${PASSWORD}`]);
        await cluster.ctl(['role', 'add', 'flannel']);
        const grant = ['role', 'grant-permission', 'flannel', 'readwrite', '/coreos.com/network/', '--prefix=true'];
        await cluster.ctl(grant);
        await cluster.ctl(['user', 'grant-role', user.username, 'flannel']);
        await cluster.ctl(['auth', 'enable']);
      });
      afterAll(() => cluster[Symbol.asyncDispose]());

      it('one role with readwrite on the prefix is enough for everything', async () => {
        const store = open({ endpoints: cluster.urls, ...user });
        const watcher = new Watcher(store);
        opened.push(watcher);
        await watcher.started();
        const other = open({ endpoints: cluster.urls, ...user });
        const lease = await other.acquire({ attributes: attributesOf('192.0.2.1'), owner: 'a' });
        await watcher.until(() => watcher.leases.size === 1);
        await other.release(await other.renew(lease));
        await watcher.until(() => watcher.leases.size === 0);
        expect(notices).toEqual([]);
      });

      it('goes on when its token has gone, with calls and watches alike', async () => {
        const proxy = await TcpProxy.open(cluster.url(0));
        opened.push(proxy);
        const store = open({ endpoints: [proxy.url], ...user });
        const lease = await store.acquire({ attributes: attributesOf('192.0.2.2'), owner: 'b' });
        const watcher = new Watcher(store);
        opened.push(watcher);
        await watcher.started();
        // No token outlives this.
        await cluster.ctl(['--user', `${root.username}:${root.password}`, 'auth', 'disable']);
        await cluster.ctl(['auth', 'enable']);
        proxy.cut();
        proxy.heal();
        const renewed = await until(() => store.renew(lease).catch(() => undefined), { what: 'a renewal' });
        expect(renewed.expiresAt).toBeDefined();
        const other = open({ endpoints: cluster.urls, ...user });
        const theirs = await other.acquire({ attributes: attributesOf('192.0.2.3'), owner: 'c' });
        await watcher.until(() => watcher.leases.size === 1);
        expect(store.metrics!()['logins']).toBeGreaterThan(1);
        await other.release(theirs);
        await store.release(renewed);
        expect(notices.filter(({ kind }) => kind !== 'down' && kind !== 'up')).toEqual([]);
      });

      it('says clearly that a login is needed, wrong, or not enough; and never a password', async () => {
        const none = await failure(open({ endpoints: cluster.urls }));
        expect(none).toMatchObject({ code: 'PERMISSION', message: expect.stringMatching(/give --etcd-username and/) });
        const wrongStore = open({ endpoints: cluster.urls, ...user, password: `${PASSWORD}!` });
        const wrong = await failure(wrongStore);
        expect(wrong).toMatchObject({
          code: 'PERMISSION',
          message: expect.stringMatching(/"podwire" or its password/),
        });
        const weakStore = open({ endpoints: cluster.urls, ...user, username: 'nobody' });
        const weak = await failure(weakStore);
        expect(weak).toMatchObject({ code: 'PERMISSION', message: expect.stringMatching(/"nobody" needs a role/) });
        const watcher = new Watcher(weakStore);
        opened.push(watcher);
        await until(() => notices.some(({ kind }) => kind === 'down'), { what: 'the watch to be refused aloud' });
        const said = [none, wrong, weak].map((error) => inspect(error, { depth: 20, showHidden: true })).join('\n');
        const told = inspect([notices, wrongStore.description, wrongStore.metrics!()], { depth: 20, showHidden: true });
        expect(said + told).not.toContain(PASSWORD);
        expect(inspect(wrongStore, { depth: 20 })).not.toContain(PASSWORD);
      });

      it('a login that etcd does not ask for does no harm', async () => {
        const open0 = await EtcdCluster.start({ version });
        opened.push(open0);
        const raw = new RawEtcd({ endpoints: open0.urls });
        await raw.put('/coreos.com/network/config', CONFIG);
        raw.close();
        const store = open({ endpoints: open0.urls, ...user });
        expect((await store.network()).network?.toString()).toBe('10.42.0.0/16');
        expect((await store.acquire({ attributes: attributesOf('192.0.2.1') })).expiresAt).toBeDefined();
      });
    });
  },
);
