import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { openMemoryLink, packetPortContract } from '../../../src/testing.js';
import { ok, root, run } from '../../support/process.js';
import { missing } from '../../support/requires.js';

/** Every rung of both offload ladders once. */
const RUNGS = [
  { tun: 'uso', udp: 'gso' },
  { tun: 'tso', udp: 'gso' },
  { tun: 'csum', udp: 'mmsg' },
  { tun: 'none', udp: 'single' },
] as const;

/**
 * A namespace that ends with its process: both TUN devices exist before the packet sockets bind to them, and nothing
 * of the host's own (router solicitations, MLD) crosses them.
 */
const SETUP = `
set -e
ip link set lo up
for host in 1 2 9; do ip -6 address add fd99::$host/128 dev lo nodad; done
echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6
for device in pwport0 pwport1; do
  ip tuntap add dev $device mode tun
  ip link set $device mtu 65535 txqueuelen 2000 up
done
exec "$0" pwport0 pwport1 -- "$@"
`;

interface Outcome {
  readonly cases: ReadonlyMap<string, string>;
  readonly packets: number;
  readonly decisions: number;
}

const lacking = missing({
  root: true,
  tun: true,
  commands: ['ip', 'unshare', 'cc'],
  files: ['dist/testing.js', 'dist/io/native.js'],
});
const names = packetPortContract((outer) => Promise.resolve(openMemoryLink(outer))).map(({ name }) => name);

describe.skipIf(lacking)('the native port', () => {
  const directory = mkdtempSync(join(tmpdir(), 'podwire-port-'));
  const taps = join(directory, 'taps');

  beforeAll(async () => {
    await ok('cc', ['-O1', '-Wall', '-Wextra', '-o', taps, join(root, 'test/contract/ports/taps.c')]);
  }, 60_000);
  afterAll(() => rmSync(directory, { recursive: true }));

  async function contract(tun: string, udp: string): Promise<Outcome> {
    const child = join(root, 'test/contract/ports/native-child.mjs');
    const command = ['-n', 'sh', '-c', SETUP, taps, process.execPath, child, tun, udp];
    const result = await run('unshare', command);
    expect(`${result.stderr}${String(result.code ?? result.signal)}`).toBe('0');
    const lines = result.stdout.trim().split('\n');
    const cases = lines.slice(0, -1).map((line) => JSON.parse(line) as { name: string; message: string });
    return {
      cases: new Map(cases.map(({ name, message }) => [name, message])),
      ...(JSON.parse(lines.at(-1)!) as { packets: number; decisions: number }),
    };
  }

  for (const { tun, udp } of RUNGS) {
    describe(`with TUN ${tun} and UDP ${udp}`, () => {
      let outcome: Outcome;
      beforeAll(async () => {
        outcome = await contract(tun, udp);
      }, 120_000);

      it.each(names)('%s', (name) => {
        expect(outcome.cases.get(name)).toBe('');
      });

      it('ran every case on the rung that was asked for', () => {
        expect([...outcome.cases.keys()]).toEqual(names);
        if (tun === 'csum' || tun === 'none') expect(outcome.decisions).toBe(outcome.packets);
        else expect(outcome.decisions).toBeLessThan(outcome.packets / 1.2);
      });
    });
  }
});
