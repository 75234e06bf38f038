import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { type FlagValues, readAgentConfig } from '../../../src/agent/config.js';
import { defaultControlSocket } from '../../../src/agent/control-path.js';
import { environmentName, flagNamed, FLAGS } from '../../../src/agent/flags.js';
import { PodwireError } from '../../../src/errors.js';

const STORE = { store: 'dir:/var/lib/podwire' };

function read(given: FlagValues, environment: NodeJS.ProcessEnv = {}) {
  return readAgentConfig({ ...STORE, ...given }, environment);
}

describe('defaults', () => {
  test('are flanneld’s, and 24 hours', () => {
    const config = read({});
    expect(config).toMatchObject({
      store: { kind: 'directory', path: '/var/lib/podwire' },
      interface: { iface: [], ifaceRegex: [] },
      subnetFile: '/run/flannel/subnet.env',
      controlSocket: '/run/flannel/podwire-subnet.sock',
      ipMasq: false,
      firewall: { manager: 'auto', forward: true, randomFully: true, blackhole: false, resyncMs: 5_000 },
      leaseTtlMs: 86_400_000,
      releaseOnExit: false,
      dataplane: {
        device: 'flannel%d',
        workers: 'auto',
        sourceCheck: 'lease',
        sourcePort: 'flow',
        offload: { tun: 'auto', udp: 'auto' },
        spin: 'adaptive',
      },
      metricsPeers: 250,
      logLevel: 'info',
      logFormat: 'auto',
      warnings: [],
    });
    expect(config.renewMarginMs).toBeUndefined();
    expect(config.dataplane.pathMtu).toBeUndefined();
  });

  test('every default in the table can be given explicitly and changes nothing', () => {
    const explicit = Object.fromEntries(FLAGS.filter((flag) => flag.default).map((flag) => [flag.name, flag.default]));
    const { renewMarginMs, ...rest } = read(explicit);
    expect(rest).toEqual(read({}));
    expect(renewMarginMs).toBe(3_600_000);
  });
});

test('every value arrives', () => {
  const { settings, ...config } = read({
    iface: ['eth1', '10.0.0.5'],
    'iface-regex': ['^10\\.'],
    'iface-can-reach': '10.0.0.1',
    'public-ip': '203.0.113.5',
    'public-ipv6': 'fd00::5',
    'subnet-file': '/run/x/net.env',
    'subnet-lease-renew-margin': '90',
    'lease-ttl': '2h30m',
    'release-on-exit': 'true',
    device: 'pw%d',
    'tx-queue-length': '5000',
    workers: '3',
    'peer-source': ['203.0.113.7=192.168.1.7,fd00::7=fd01::7', '203.0.113.7=192.168.1.8'],
    'source-check': 'strict',
    'source-port': 'fixed',
    'tun-offload': 'tso',
    'udp-offload': 'mmsg',
    spin: 'off',
    'path-mtu-probes': 'false',
    'log-level': 'debug',
    'log-format': 'json',
    'metrics-peers': '12',
  });
  expect([settings.get('device'), settings.get('iface'), settings.get('v')]).toEqual(['pw%d', 'eth1\n10.0.0.5', '0']);
  expect(config).toEqual({
    store: { kind: 'directory', path: '/var/lib/podwire' },
    interface: {
      iface: ['eth1', '10.0.0.5'],
      ifaceRegex: ['^10\\.'],
      ifaceCanReach: '10.0.0.1',
      publicIp: '203.0.113.5',
      publicIpv6: 'fd00::5',
    },
    subnetFile: '/run/x/net.env',
    controlSocket: '/run/x/podwire-net.sock',
    ipMasq: false,
    firewall: { manager: 'auto', forward: true, randomFully: true, blackhole: false, resyncMs: 5_000 },
    leaseTtlMs: 9_000_000,
    renewMarginMs: 5_400_000,
    releaseOnExit: true,
    stateDirectory: '/var/lib/podwire-agent',
    txQueueLength: 5000,
    peerSources: { '203.0.113.7': ['192.168.1.7', '192.168.1.8'], 'fd00::7': ['fd01::7'] },
    dataplane: {
      device: 'pw%d',
      workers: 3,
      sourceCheck: 'strict',
      sourcePort: 'fixed',
      offload: { tun: 'tso', udp: 'mmsg' },
      spin: 'off',
      peerProbes: true,
      pathMtu: false,
    },
    metricsPeers: 12,
    logLevel: 'debug',
    logFormat: 'json',
    warnings: [],
  });
});

/** given values → code and message. */
const refused: readonly [FlagValues, string, RegExp][] = [
  [
    { store: 'etcd:http://x' },
    'INVALID_ARGUMENT',
    /--store "etcd:http:\/\/x" is no lease store.*with --etcd-endpoints/,
  ],
  [{ store: 'etcd://root:hunter2@x' }, 'INVALID_ARGUMENT', /^(?!.*hunter2)--store "…@x" is no lease store/],
  [{ store: '/var/lib/x' }, 'INVALID_ARGUMENT', /dir:PATH for a directory/],
  [{ store: 'dir:' }, 'INVALID_ARGUMENT', /names no directory/],
  [
    { store: 'etcd', 'etcd-endpoints': 'http://10.0.0.1:2379,10.0.0.2' },
    'INVALID_ARGUMENT',
    /^--etcd-endpoints: "10\.0\.0\.2" is no etcd server: write http:\/\/HOST:PORT/,
  ],
  [{ store: 'etcd', 'etcd-endpoints': 'ftp://a:1' }, 'INVALID_ARGUMENT', /"ftp:\/\/a:1" is no etcd server/],
  [{ store: 'etcd', 'etcd-endpoints': 'http://a:70000' }, 'INVALID_ARGUMENT', /is no etcd server/],
  [{ store: 'etcd', 'etcd-endpoints': 'http://a:1/v3' }, 'INVALID_ARGUMENT', /is no etcd server/],
  [{ store: 'etcd', 'etcd-endpoints': ' , ' }, 'INVALID_ARGUMENT', /names no server/],
  [
    { store: 'etcd', 'etcd-endpoints': 'https://root:hunter2@10.0.0.1:2379' },
    'INVALID_ARGUMENT',
    /^(?!.*hunter2).*"…@10\.0\.0\.1:2379" has a user in it: give --etcd-username and --etcd-password/,
  ],
  [{ store: 'etcd', 'etcd-prefix': '//' }, 'INVALID_ARGUMENT', /--etcd-prefix is empty/],
  [{ store: 'etcd', 'etcd-certfile': '/c' }, 'INVALID_ARGUMENT', /--etcd-certfile needs --etcd-keyfile too/],
  [{ store: 'etcd', 'etcd-keyfile': '/k' }, 'INVALID_ARGUMENT', /--etcd-keyfile needs --etcd-certfile too/],
  [{ 'kube-subnet-mgr': 'true' }, 'UNSUPPORTED', /^--kube-subnet-mgr belongs to the Kubernetes store/],
  [{ 'healthz-port': '65536' }, 'INVALID_ARGUMENT', /--healthz-port "65536" is not a number from 0 to 65535/],
  [{ 'healthz-port': 'http' }, 'INVALID_ARGUMENT', /--healthz-port "http"/],
  [{ 'metrics-peers': 'all' }, 'INVALID_ARGUMENT', /--metrics-peers "all" is not a number from 0 to 10000/],
  [{ 'healthz-ip': 'no host' }, 'INVALID_ARGUMENT', /--healthz-ip "no host" is neither an IP address nor a host name/],
  [{ v: 'much' }, 'INVALID_ARGUMENT', /--v "much" is not a number/],
  [{ 'iptables-resync': '0' }, 'INVALID_ARGUMENT', /--iptables-resync "0" is not a number from 1 to 86400/],
  [{ 'iptables-resync': '5s' }, 'INVALID_ARGUMENT', /--iptables-resync "5s" is not a number/],
  [{ firewall: 'nftables' }, 'INVALID_ARGUMENT', /--firewall "nftables" is not one of auto, nft, iptables, none/],
  [{ 'public-ip': 'localhost' }, 'INVALID_ADDRESS', /--public-ip "localhost" is not an IPv4 address/],
  [{ 'public-ip': 'fd00::1' }, 'INVALID_ADDRESS', /is not an IPv4 address/],
  [{ 'public-ipv6': '10.0.0.1' }, 'INVALID_ADDRESS', /is not an IPv6 address/],
  [{ 'iface-can-reach': '10.0.0' }, 'INVALID_ADDRESS', /--iface-can-reach "10\.0\.0" is not an IP address/],
  [{ 'ip-masq': 'yes' }, 'INVALID_ARGUMENT', /--ip-masq=yes is neither true nor false/],
  [
    { 'subnet-lease-renew-margin': '0' },
    'INVALID_ARGUMENT',
    /^Invalid subnet-lease-renew-margin option, out of acceptable range: "0"/,
  ],
  [{ 'subnet-lease-renew-margin': '1440' }, 'INVALID_ARGUMENT', /out of acceptable range/],
  [{ 'subnet-lease-renew-margin': '1h' }, 'INVALID_ARGUMENT', /out of acceptable range/],
  [{ 'subnet-lease-renew-margin': '60', 'lease-ttl': '60m' }, 'INVALID_ARGUMENT', /not shorter than --lease-ttl 60m/],
  [{ 'lease-ttl': '24' }, 'INVALID_ARGUMENT', /--lease-ttl "24" is no duration/],
  [{ 'lease-ttl': '999ms' }, 'INVALID_ARGUMENT', /no duration from 1s/],
  [{ 'lease-ttl': '9999d' }, 'INVALID_ARGUMENT', /no duration/],
  [{ 'lease-ttl': '-1h' }, 'INVALID_ARGUMENT', /no duration/],
  [{ workers: '0' }, 'INVALID_ARGUMENT', /--workers "0" is not a number from 1 to 32 or auto/],
  [{ workers: 'many' }, 'INVALID_ARGUMENT', /--workers/],
  [{ workers: '1e1' }, 'INVALID_ARGUMENT', /--workers/],
  [{ 'peer-source': '10.0.0.1' }, 'INVALID_ADDRESS', /--peer-source "10\.0\.0\.1" is not PUBLICIP=ADDRESS/],
  [{ 'peer-source': ['10.0.0.1=10.0.0.2', '10.0.0.1=fd00::1'] }, 'INVALID_ADDRESS', /"10\.0\.0\.1=fd00::1" is not/],
  [{ 'peer-source': 'a=b=c' }, 'INVALID_ADDRESS', /is not PUBLICIP=ADDRESS/],
  [{ 'source-check': 'on' }, 'INVALID_ARGUMENT', /--source-check "on" is not one of off, lease, strict/],
  [{ 'source-port': '8285' }, 'INVALID_ARGUMENT', /not one of flow, fixed/],
  [{ 'tun-offload': 'gso' }, 'INVALID_ARGUMENT', /--tun-offload/],
  [{ 'udp-offload': 'tso' }, 'INVALID_ARGUMENT', /--udp-offload/],
  [{ spin: 'true' }, 'INVALID_ARGUMENT', /--spin/],
  [{ 'path-mtu-probes': '2' }, 'INVALID_ARGUMENT', /--path-mtu-probes=2/],
  [{ device: 'a name' }, 'INVALID_ARGUMENT', /--device "a name" is no device name/],
  [{ device: 'flannel%d%d' }, 'INVALID_ARGUMENT', /no device name/],
  [{ device: '0123456789abcdef' }, 'INVALID_ARGUMENT', /at most 15 bytes/],
  [{ device: '..' }, 'INVALID_ARGUMENT', /no device name/],
  [{ 'tx-queue-length': '-5' }, 'INVALID_ARGUMENT', /--tx-queue-length/],
  [{ 'log-level': 'loud' }, 'INVALID_ARGUMENT', /--log-level "loud" is not one of debug, info, warn, error/],
  [{ 'log-format': 'xml' }, 'INVALID_ARGUMENT', /--log-format/],
  [{ 'control-socket': `/tmp/${'x'.repeat(120)}` }, 'INVALID_ARGUMENT', /longer than 107 bytes/],
];

test.each(refused)('refused: %j', (given, code, message) => {
  expect(() => read(given)).toThrow(PodwireError);
  expect(() => read(given)).toThrow(message);
  try {
    read(given);
  } catch (error) {
    expect(error).toMatchObject({ code });
    expect((error as Error).message).not.toContain('\n');
  }
});

test('firewall flags', () => {
  expect(
    read({
      'ip-masq': 'true',
      'ip-masq-fully-random-disable': 'true',
      'iptables-resync': '30',
      'iptables-forward-rules': 'false',
      'ip-blackhole-route': 'true',
      firewall: 'iptables',
    }),
  ).toMatchObject({
    ipMasq: true,
    firewall: { manager: 'iptables', forward: false, randomFully: false, blackhole: true, resyncMs: 30_000 },
    warnings: [],
  });
});

test('masquerading that nobody does is told', () => {
  expect(read({ 'ip-masq': 'true', firewall: 'none' }).warnings).toEqual([
    '--ip-masq with --firewall none: FLANNEL_IPMASQ=true is written to the subnet file, masquerading is up to you',
  ]);
  expect(read({ firewall: 'none' }).warnings).toEqual([]);
});

describe('flags without effect are told', () => {
  test('a store flag from the environment does not get in the way of --store', () => {
    const config = read({}, { FLANNELD_ETCD_ENDPOINTS: 'http://10.0.0.1:2379' });
    expect(config.warnings).toEqual([expect.stringMatching(/^FLANNELD_ETCD_ENDPOINTS has no effect/)]);
  });

  test('flags that mean nothing here are accepted, aloud where somebody may wait for their effect', () => {
    expect(read({ 'set-node-network-unavailable': 'false', vmodule: '' }).warnings).toEqual([]);
    expect(read({ vmodule: 'x=1' }).warnings).toEqual(['--vmodule has no effect: see --log-level']);
  });
});

describe('health checks', () => {
  test.each([
    [{}, undefined],
    [{ 'healthz-port': '0', 'healthz-ip': '::' }, undefined],
    [{ 'healthz-port': '8081' }, { host: '0.0.0.0', port: 8081 }],
    [
      { 'healthz-port': '8081', 'healthz-ip': 'fd00::1' },
      { host: 'fd00::1', port: 8081 },
    ],
    [
      { 'healthz-port': '8081', 'healthz-ip': 'localhost' },
      { host: 'localhost', port: 8081 },
    ],
  ])('%j', (given, health) => {
    expect(read(given).health).toEqual(health);
  });
});

test.each([
  [{}, 'info'],
  [{ v: '1' }, 'info'],
  [{ v: '2' }, 'debug'],
  [{ v: '10' }, 'debug'],
  [{ v: '10', 'log-level': 'warn' }, 'warn'],
  [{ v: '-1' }, 'info'],
])('%j logs from %s on', (given, level) => {
  expect(read(given).logLevel).toBe(level);
});

describe('etcd', () => {
  const etcd = (given: FlagValues, environment: NodeJS.ProcessEnv = {}) => readAgentConfig({ ...given }, environment);

  test('is the default, with flanneld’s servers and prefix', () => {
    const expected = {
      kind: 'etcd',
      options: { endpoints: ['http://127.0.0.1:4001', 'http://127.0.0.1:2379'], prefix: '/coreos.com/network' },
    };
    expect(etcd({}).store).toEqual(expected);
    expect(etcd({ store: 'etcd' }).store).toEqual(expected);
    expect(etcd({}).warnings).toEqual([]);
  });

  test('every flag arrives', () => {
    const config = etcd({
      'etcd-endpoints': 'https://a:2379, HTTPS://[fd00::1]:2379/,https://a:2379',
      'etcd-prefix': '/other',
      'etcd-cafile': '/tls/ca.pem',
      'etcd-certfile': '/tls/cert.pem',
      'etcd-keyfile': '/tls/key.pem',
      'etcd-username': 'root',
      'etcd-password': 'hunter2',
    });
    expect(config.store).toEqual({
      kind: 'etcd',
      options: {
        endpoints: ['https://a:2379', 'https://[fd00::1]:2379'],
        prefix: '/other',
        caFile: '/tls/ca.pem',
        certFile: '/tls/cert.pem',
        keyFile: '/tls/key.pem',
        username: 'root',
        password: 'hunter2',
      },
    });
    expect(config.warnings).toEqual([]);
  });

  test('a server without a scheme is asked as the certificates say', () => {
    expect(etcd({ 'etcd-endpoints': 'a:1' }).store).toMatchObject({ options: { endpoints: ['http://a:1'] } });
    const secure = etcd({ 'etcd-endpoints': 'a:1', 'etcd-certfile': '/c', 'etcd-keyfile': '/k' });
    expect(secure.store).toMatchObject({ options: { endpoints: ['https://a:1'] } });
  });

  test('a user without a password and certificates without https are told', () => {
    expect(etcd({ 'etcd-username': 'root' }).warnings).toEqual([
      '--etcd-username without --etcd-password: etcd is asked without a user, as flanneld does',
    ]);
    expect(etcd({ 'etcd-endpoints': 'http://a:1', 'etcd-cafile': '/ca' }).warnings).toEqual([
      'the etcd certificates have no effect: every endpoint is http, http://a:1',
    ]);
  });

  test('its flags beside another store are told', () => {
    expect(read({ 'etcd-prefix': '/x', 'etcd-password': 'hunter2' }).warnings).toEqual([
      '--etcd-prefix has no effect: the leases are in --store dir:/var/lib/podwire',
      '--etcd-password has no effect: the leases are in --store dir:/var/lib/podwire',
    ]);
  });
});

test('no secret is in any error or warning, wherever it is written', () => {
  const secret = 'hunter2-kept-to-us';
  const places: readonly string[] = FLAGS.filter(({ section }) => section === 'etcd' || section === 'store')
    .map(({ name }) => name)
    .filter((name) => !['lease-ttl', 'release-on-exit', 'etcd-cafile', 'etcd-certfile', 'etcd-keyfile'].includes(name));
  const shapes = ['{}', 'http://u:{}@h:1', 'u:{}@h:1', '{}@h', 'http://u:{}@h@h:1,{}@x', 'etcd:http://u:{}@h:1'];
  fc.assert(
    fc.property(fc.constantFrom(...places), fc.constantFrom(...shapes), fc.boolean(), (place, shape, isVariable) => {
      // Whoever gives a secret as a prefix or as the name of a store has published it already.
      fc.pre(place === 'etcd-password' || shape.includes('@'));
      fc.pre(place !== 'etcd-prefix' && place !== 'etcd-username');
      const value = shape.replaceAll('{}', secret);
      const flag = flagNamed(place);
      const [given, environment] =
        isVariable && flag ? [{}, { [environmentName(flag)]: value }] : [{ [place]: value }, {}];
      let said: string;
      try {
        said = readAgentConfig(given, environment).warnings.join('\n');
      } catch (error) {
        said = `${(error as Error).message}\n${(error as Error).stack ?? ''}`;
      }
      expect(said).not.toContain(secret);
    }),
  );
});

test('the control socket follows the subnet file', () => {
  expect(defaultControlSocket('/run/flannel/subnet.env')).toBe('/run/flannel/podwire-subnet.sock');
  expect(defaultControlSocket('/run/flannel/second')).toBe('/run/flannel/podwire-second.sock');
});
