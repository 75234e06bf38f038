/** Where the agent's flags come from beside the command line: variables and a file of them. */
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type FlagValues, loadAgentConfig, readAgentConfig } from '../../../src/agent/config.js';
import { FlagReader } from '../../../src/agent/flag-reader.js';
import { environmentName, flagNamed, FLAGS } from '../../../src/agent/flags.js';

const STORE = { store: 'dir:/var/lib/podwire' };

function read(given: FlagValues, environment: NodeJS.ProcessEnv = {}) {
  return readAgentConfig({ ...STORE, ...given }, environment);
}

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

  test.each([
    [{ FLANNELD_IP_MASQ: 'maybe' }, 'FLANNELD_IP_MASQ=maybe is neither true nor false and counts as not given'],
    [{ FLANNELD_HEALTHZ_PORT: 'http' }, 'FLANNELD_HEALTHZ_PORT=http is no number and counts as not given'],
    [{ FLANNELD_SUBNET_LEASE_RENEW_MARGIN: '1h' }, 'FLANNELD_SUBNET_LEASE_RENEW_MARGIN=1h is no number and counts'],
    [{ FLANNELD_V: 'high' }, 'FLANNELD_V=high is no number'],
    [{ FLANNELD_KUBE_SUBNET_MGR: 'si' }, 'FLANNELD_KUBE_SUBNET_MGR=si is neither'],
  ])('flanneld goes on with a default where it cannot read %j, and so do we, aloud', (environment, line) => {
    const { warnings, ...rest } = read({}, environment);
    expect(warnings).toEqual([expect.stringContaining(line)]);
    const { warnings: _, ...usual } = read({});
    expect(rest).toEqual(usual);
  });

  test('what the command line says hides such a value', () => {
    expect(read({ 'ip-masq': 'false' }, { FLANNELD_IP_MASQ: 'maybe' }).warnings).toEqual([]);
  });

  test('a value of ours that cannot be read is an error with the variable’s name', () => {
    expect(() => read({}, { PODWIRE_RELEASE_ON_EXIT: 'maybe' })).toThrow('PODWIRE_RELEASE_ON_EXIT=maybe is neither');
    expect(() => read({}, { PODWIRE_WORKERS: 'lots' })).toThrow('PODWIRE_WORKERS "lots" is not a number from 1 to 32');
  });

  test('a misspelt variable is told with the nearest, others are nobody’s business', () => {
    const environment = {
      FLANNELD_IP_MASK: 'true',
      PODWIRE_LEASE_TLT: '1h',
      FLANNELD_PORT: 'tcp://10.0.0.1:80',
      V: '1',
    };
    expect(read({}, environment).warnings).toEqual([
      'FLANNELD_IP_MASK is read by nobody: did you mean FLANNELD_IP_MASQ?',
      'PODWIRE_LEASE_TLT is read by nobody: did you mean PODWIRE_LEASE_TTL?',
    ]);
  });

  test('every flag of flanneld’s has its variable', () => {
    for (const flag of FLAGS.filter(({ group, name }) => group !== 'own' && name !== 'log_backtrace_at')) {
      const value = { bool: 'true', int: '7', list: 'eth7', text: flag.default || '10.0.0.7' }[flag.kind];
      const reader = new FlagReader({}, { [environmentName(flag)]: value });
      expect([reader.list(flag.name), reader.warnings]).toEqual([[value], []]);
      const given = new FlagReader({ [flag.name]: '1' }, { [environmentName(flag)]: value });
      expect(given.list(flag.name)).toEqual(['1']);
    }
  });
});

describe('a file of variables', () => {
  let directory: string;
  beforeAll(async () => {
    directory = await mkdtemp(join(tmpdir(), 'pwag-env-'));
  });
  afterAll(() => rm(directory, { recursive: true }));

  test('stands behind the environment, which stands behind the command line', async () => {
    const path = join(directory, 'podwire.env');
    await writeFile(
      path,
      '# podwire\nexport FLANNELD_PUBLIC_IP="10.0.0.1"\nFLANNELD_IP_MASQ=true\nPODWIRE_LOG_LEVEL=debug\nOTHER=1\n',
    );
    const config = await loadAgentConfig(
      { ...STORE, 'public-ip': '10.0.0.3' },
      {
        PODWIRE_ENVIRONMENT_FILE: path,
        FLANNELD_PUBLIC_IP: '10.0.0.2',
        PODWIRE_LOG_LEVEL: 'warn',
        FLANNELD_IP_MASQ: '',
      },
    );
    expect(config).toMatchObject({ interface: { publicIp: '10.0.0.3' }, ipMasq: true, logLevel: 'warn' });
    await writeFile(path, 'PODWIRE_LOG_LEVEL=error\n');
    const later = await loadAgentConfig({ ...STORE, 'environment-file': path }, {});
    expect(later).toMatchObject({ ipMasq: false, logLevel: 'error' });
  });
});
