import { describe, expect, test } from 'vitest';
import { type DockerOptionsChoice, formatDockerOptions } from '../../../src/host/docker-options.js';

const FILE = 'FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.74.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n';
const USUAL: DockerOptionsChoice = {
  individual: true,
  combined: true,
  key: 'DOCKER_OPTS',
  before: '',
  withoutIpMasq: false,
};

const format = (choice: Partial<DockerOptionsChoice> = {}, file = FILE): string =>
  formatDockerOptions(file, '/run/x.env', { ...USUAL, ...choice });

const SINGLE = 'DOCKER_OPT_BIP="--bip=10.1.74.1/24"\nDOCKER_OPT_IPMASQ="--ip-masq=true"\nDOCKER_OPT_MTU="--mtu=1472"\n';
const TOGETHER = ' --bip=10.1.74.1/24 --ip-masq=true --mtu=1472';

test.each([
  ['usual', {}, `${SINGLE}DOCKER_OPTS="${TOGETHER}"\n`],
  ['-i', { combined: false }, SINGLE],
  ['-c', { individual: false }, `DOCKER_OPTS="${TOGETHER}"\n`],
  ['-k CUSTOM_KEY', { key: 'CUSTOM_KEY' }, `${SINGLE}CUSTOM_KEY="${TOGETHER}"\n`],
  ['-m', { withoutIpMasq: true, individual: false }, 'DOCKER_OPTS=" --bip=10.1.74.1/24 --mtu=1472"\n'],
  ['with options from before', { before: '--debug', individual: false }, `DOCKER_OPTS="--debug${TOGETHER}"\n`],
] as const)('%s', (_, choice, expected) => {
  expect(format(choice)).toBe(expected);
});

test('only one of docker and the agent masquerades', () => {
  expect(format({}, FILE.replace('false', 'true'))).toContain('DOCKER_OPT_IPMASQ="--ip-masq=false"');
});

describe('refused', () => {
  test.each([
    ['', /^\/run\/x\.env has no FLANNEL_SUBNET: is that a subnet file/],
    [FILE.replace('10.1.74.1/24', '$(reboot)'), /FLANNEL_SUBNET=\$\(reboot\), which is no IPv4 address/],
    [FILE.replace('10.1.74.1/24', 'fd00::1/64'), /which is no IPv4 address/],
    [FILE.replace('1472', '"1472 -D"'), /FLANNEL_MTU=1472 -D, which is no MTU/],
    [FILE.replace('false', 'perhaps'), /FLANNEL_IPMASQ=perhaps, which is no true or false/],
    [FILE.replace(/FLANNEL_MTU.*\n/, ''), /has no FLANNEL_MTU/],
  ])('%j', (file, message) => {
    expect(() => format({}, file)).toThrow(message);
  });
});
