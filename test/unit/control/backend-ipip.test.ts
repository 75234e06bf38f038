import { describe, expect, test } from 'vitest';
import { IpipBackend } from '../../../src/control/backends/ipip.js';
import type { BackendOptions } from '../../../src/control/backends/backend.js';
import { parseNetworkConfig } from '../../../src/control/network-config.js';
import { silentLogger } from '../../../src/dataplane/logger.js';
import { differences } from '../../../src/host/differences.js';
import type { Runner } from '../../../src/host/exec.js';
import type { Guard, GuardedState } from '../../../src/host/guard.js';
import { readHostFacts } from '../../../src/host/host-facts.js';
import type { Reconciliation } from '../../../src/host/reconcile.js';
import { Address, Prefix } from '../../../src/net/prefix.js';
import { leaseOf } from '../../support/leases.js';
import { fakeIp, link } from '../host/fake-ip.js';

/** Says what a guard would change; `refuse` is the kernel's answer to all of it. */
class RecordingGuard implements Guard {
  commands: string[] = [];
  readonly #runner: Runner;
  readonly #refuse: string | undefined;

  constructor(runner: Runner, refuse: string | undefined) {
    this.#runner = runner;
    this.#refuse = refuse;
  }

  async keep(_part: string, desired: GuardedState, onPass?: (result: Reconciliation) => void): Promise<void> {
    const changes = differences(desired, await readHostFacts(this.#runner, desired));
    this.commands = changes.flatMap(({ command }) => command ?? []);
    const reason = this.#refuse;
    if (reason === undefined) onPass?.({ made: changes, failed: [], held: [] });
    else onPass?.({ made: [], failed: changes.map((change) => ({ change, reason })), held: [] });
  }

  drop(): Promise<void> {
    return Promise.resolve();
  }

  stats(): never {
    throw new Error('not asked for');
  }

  close(): Promise<void> {
    return Promise.resolve();
  }
}

const device = (data: object): unknown => ({
  ...(link('flannel.ipip', 9, ['10.42.7.0']) as object),
  mtu: 1480,
  linkinfo: { info_kind: 'ipip', info_data: data },
});

/** A host whose kernel says what `answers` says, and all commands that change something. */
function host(answers: Readonly<Record<string, unknown>>, backend: object = {}, refuse?: string) {
  const { runner } = fakeIp({
    '-j tuntap': [],
    '-j link show type tun': [],
    '-j -d link show': [link('eth0', 2, [])],
    '-j -d address show': [link('eth0', 2, ['192.0.2.1'])],
    '-j -N -4 route show table main proto': [],
    '-j -N -4 route show table main': [],
    '-j neigh show': [],
    'link del': '',
    ...answers,
  });
  const guard = new RecordingGuard(runner, refuse);
  const options: BackendOptions = {
    network: parseNetworkConfig(JSON.stringify({ Network: '10.42.0.0/16', Backend: { Type: 'ipip', ...backend } })),
    underlay: {
      name: 'eth0',
      index: 2,
      mtu: 1500,
      address: Address.parse('192.0.2.1'),
      address6: undefined,
      publicIp: Address.parse('192.0.2.1'),
      publicIpv6: undefined,
      why: 'test',
    },
    dataplane: {},
    runner,
    logger: silentLogger,
    guard,
  };
  return { options, guard };
}

/** This machine's kernel has no ipip: the commands are compared with what a kernel that has it would be told. */
describe('ipip', () => {
  test('device, address and an onlink route a host', async () => {
    const { options, guard } = host({});
    const backend = await IpipBackend.open(options);
    expect(backend.mtu).toBe(1480);
    expect(backend.attributes).toMatchObject({ backendType: 'ipip' });
    backend.setRoute(Prefix.parse('10.42.9.0/24'), leaseOf('10.42.9.0/24', '192.0.2.9'));
    await backend.begin(leaseOf('10.42.7.0/24', '192.0.2.1'), async () => undefined);
    expect(guard.commands).toEqual(
      expect.arrayContaining([
        'link add flannel.ipip mtu 1480 type ipip local 192.0.2.1',
        'link set dev flannel.ipip up',
        'address replace 10.42.7.0/32 dev flannel.ipip',
        'route add 10.42.9.0/24 via 192.0.2.9 dev flannel.ipip proto 111 onlink',
      ]),
    );
  });

  test('DirectRouting: a host on the same link without the tunnel, one behind a gateway through it', async () => {
    const { options, guard } = host(
      {
        '-j -N -4 route show table main': [
          { dst: 'default', gateway: '192.0.2.254', dev: 'eth0' },
          { dst: '192.0.2.0/24', dev: 'eth0', protocol: '2' },
        ],
      },
      { DirectRouting: true },
    );
    const backend = await IpipBackend.open(options);
    backend.setRoute(Prefix.parse('10.42.9.0/24'), leaseOf('10.42.9.0/24', '192.0.2.9'));
    backend.setRoute(Prefix.parse('10.42.8.0/24'), leaseOf('10.42.8.0/24', '198.51.100.8'));
    await backend.begin(leaseOf('10.42.7.0/24', '192.0.2.1'), async () => undefined);
    await backend.close();
    expect(guard.commands).toEqual(
      expect.arrayContaining([
        'route add 10.42.9.0/24 via 192.0.2.9 dev eth0 proto 111',
        'route add 10.42.8.0/24 via 198.51.100.8 dev flannel.ipip proto 111 onlink',
      ]),
    );
  });

  test('a device that fits is kept, one with another local address made anew', async () => {
    for (const [local, expected] of [
      ['192.0.2.1', []],
      ['192.0.2.77', ['link del dev flannel.ipip', 'link add flannel.ipip mtu 1480 type ipip local 192.0.2.1']],
    ] as const) {
      const entry = device({ local, remote: 'any' });
      const { options, guard } = host({ '-j -d link show': [entry], '-j -d address show': [entry] });
      const backend = await IpipBackend.open(options);
      await backend.close();
      expect(guard.commands.filter((call) => /^link (add|del)/.test(call))).toEqual(expected);
    }
  });

  test('what cannot be is refused with one line', async () => {
    const other = { ...(link('flannel.ipip', 9, []) as object), linkinfo: { info_kind: 'dummy' } };
    await expect(IpipBackend.open(host({ '-j -d link show': [other] }).options)).rejects.toThrow(
      'flannel.ipip is no ipip device but dummy: remove it (ip link del flannel.ipip) and start again',
    );
    await expect(IpipBackend.open(host({}, { DirectRouting: 'no' }).options)).rejects.toThrow(
      'Backend.DirectRouting is the string "no"; give true or false',
    );
    await expect(
      IpipBackend.open(host({}, { Mode: 'kernel' }, 'ip link add: Operation not supported').options),
    ).rejects.toThrow(/this kernel has no ipip .*modprobe ipip/);
  });
});
