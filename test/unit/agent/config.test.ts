import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { type FlagValues, readAgentConfig } from '../../../src/agent/config.js';
import { defaultControlSocket } from '../../../src/agent/control-path.js';
import { environmentName, flagNamed, FLAGS, normaliseArguments } from '../../../src/agent/flags.js';
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
      logLevel: 'info',
      logFormat: 'auto',
      warnings: [],
    });
    expect(config.renewMarginMs).toBeUndefined();
    expect(config.dataplane.pathMtu).toBeUndefined();
  });

  test('every default in the table can be given explicitly and changes nothing', () => {
    const explicit = Object.fromEntries(
      FLAGS.filter((flag) => flag.default && flag.group !== 'firewall').map((flag) => [flag.name, flag.default]),
    );
    const { renewMarginMs, ...rest } = read(explicit);
    expect(rest).toEqual(read({}));
    expect(renewMarginMs).toBe(3_600_000);
  });
});

test('every value arrives', () => {
  const config = read({
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
    'source-check': 'strict',
    'source-port': 'fixed',
    'tun-offload': 'tso',
    'udp-offload': 'mmsg',
    spin: 'off',
    'path-mtu-probes': 'false',
    'log-level': 'debug',
    'log-format': 'json',
  });
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
    leaseTtlMs: 9_000_000,
    renewMarginMs: 5_400_000,
    releaseOnExit: true,
    stateDirectory: '/var/lib/podwire-agent',
    txQueueLength: 5000,
    dataplane: {
      device: 'pw%d',
      workers: 3,
      sourceCheck: 'strict',
      sourcePort: 'fixed',
      offload: { tun: 'tso', udp: 'mmsg' },
      spin: 'off',
      pathMtu: false,
    },
    logLevel: 'debug',
    logFormat: 'json',
    warnings: [],
  });
});

describe('environment', () => {
  test('fills what the command line leaves open, and loses against it', () => {
    const environment = {
      FLANNELD_PUBLIC_IP: '10.0.0.1',
      FLANNELD_SUBNET_FILE: '/run/a/b.env',
      PODWIRE_LEASE_TTL: '1h',
    };
    expect(read({ 'public-ip': '10.0.0.2' }, environment)).toMatchObject({
      interface: { publicIp: '10.0.0.2' },
      subnetFile: '/run/a/b.env',
      leaseTtlMs: 3_600_000,
    });
  });

  test('a list takes one value from it; an empty value is none', () => {
    expect(read({}, { FLANNELD_IFACE: 'eth0,eth1', FLANNELD_PUBLIC_IP: '' }).interface).toEqual({
      iface: ['eth0,eth1'],
      ifaceRegex: [],
    });
  });

  test('names', () => {
    const names = ['ip-masq', 'etcd-endpoints', 'iface-can-reach', 'lease-ttl', 'store'].map((name) => {
      const flag = flagNamed(name);
      return flag && environmentName(flag);
    });
    expect(names).toEqual([
      'FLANNELD_IP_MASQ',
      'FLANNELD_ETCD_ENDPOINTS',
      'FLANNELD_IFACE_CAN_REACH',
      'PODWIRE_LEASE_TTL',
      'PODWIRE_STORE',
    ]);
  });

  test('a bad value is told with the variable’s name', () => {
    expect(() => read({}, { FLANNELD_IP_MASQ: 'maybe' })).toThrow('FLANNELD_IP_MASQ=maybe is neither true nor false');
  });
});

/** given values → code and message. */
const refused: readonly [FlagValues, string, RegExp][] = [
  [{ store: undefined }, 'UNSUPPORTED', /^without --store the agent means etcd.*give --store dir:PATH$/],
  [{ store: 'etcd:http://x' }, 'INVALID_ARGUMENT', /--store "etcd:http:\/\/x".*directory store only, written dir:PATH/],
  [{ store: '/var/lib/x' }, 'INVALID_ARGUMENT', /written dir:PATH/],
  [{ store: 'dir:' }, 'INVALID_ARGUMENT', /names no directory/],
  [
    { 'etcd-endpoints': 'http://10.0.0.1:2379' },
    'UNSUPPORTED',
    /^--etcd-endpoints belongs to the etcd store: this version has the directory store only/,
  ],
  [{ 'etcd-prefix': '/other' }, 'UNSUPPORTED', /etcd store/],
  [{ 'etcd-password': 'hunter2' }, 'UNSUPPORTED', /^(?!.*hunter2).*--etcd-password/],
  [{ 'kube-subnet-mgr': 'true' }, 'UNSUPPORTED', /^--kube-subnet-mgr belongs to the Kubernetes store/],
  [{ 'healthz-port': '8081' }, 'UNSUPPORTED', /--healthz-port asks for the health check server.*leave it out/],
  [{ 'ip-blackhole-route': 'true' }, 'UNSUPPORTED', /--ip-blackhole-route/],
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

describe('flags without effect are told', () => {
  test('--ip-masq is written, and no rules are installed', () => {
    const config = read({ 'ip-masq': 'true' });
    expect(config.ipMasq).toBe(true);
    expect(config.warnings).toEqual([
      expect.stringMatching(/^--ip-masq: this version installs no firewall rules; FLANNEL_IPMASQ=true/),
    ]);
    expect(read({ 'ip-masq': 'F' }).warnings).toEqual([]);
  });

  test('a store flag from the environment does not get in the way of --store', () => {
    const config = read({}, { FLANNELD_ETCD_ENDPOINTS: 'http://10.0.0.1:2379' });
    expect(config.warnings).toEqual([expect.stringMatching(/^FLANNELD_ETCD_ENDPOINTS has no effect/)]);
  });

  test('flags that mean nothing here are accepted silently', () => {
    expect(
      read({ v: '10', vmodule: 'x=1', 'healthz-ip': '::', 'set-node-network-unavailable': 'false' }).warnings,
    ).toEqual([]);
  });
});

test('the control socket follows the subnet file', () => {
  expect(defaultControlSocket('/run/flannel/subnet.env')).toBe('/run/flannel/podwire-subnet.sock');
  expect(defaultControlSocket('/run/flannel/second')).toBe('/run/flannel/podwire-second.sock');
});

describe('command lines in Go’s syntax', () => {
  test.each([
    ['-iface=eth0', ['--iface=eth0']],
    ['--iface eth0', ['--iface=eth0']],
    ['-iface eth0', ['--iface=eth0']],
    ['-ip-masq', ['--ip-masq=true']],
    ['--ip-masq=false', ['--ip-masq=false']],
    ['-ip-masq eth0', ['--ip-masq=true', 'eth0']],
    ['--public-ip -5', ['--public-ip=-5']],
    ['-iface', ['--iface']],
    ['-unknown 3', ['--unknown', '3']],
    ['--unknown=3', ['--unknown']],
    ['-v=2', ['--v=2']],
    ['-h', ['-h']],
    ['-version', ['--version']],
    ['-- -iface', ['--', '-iface']],
    ['positional -iface=eth0', ['positional', '--iface=eth0']],
  ])('%s', (line, expected) => {
    expect(normaliseArguments(line.split(' '))).toEqual(expected);
  });

  test('what is already in the long form stays the same', () => {
    const argument = fc.constantFrom(...FLAGS.map((flag) => flag.name)).map((name) => `--${name}=value`);
    fc.assert(
      fc.property(fc.array(argument), (args) => {
        expect(normaliseArguments(args)).toEqual(args);
      }),
    );
  });

  test('an empty value stays a value', () => {
    expect(normaliseArguments(['-iface', ''])).toEqual(['--iface=']);
  });
});
