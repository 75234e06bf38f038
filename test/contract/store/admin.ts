/** What operators can do to every store that offers it, run beside the lease store contract with the same harness. */
import { describe, expect, it } from 'vitest';
import { leaseKey, parseLeaseKey } from '../../../src/control/lease-key.js';
import { sameSubnets, type Lease, type StoreAdmin } from '../../../src/control/lease.js';
import { Prefix } from '../../../src/net/prefix.js';
import { attributesOf } from '../../support/leases.js';
import { DUAL_CONFIG, StoreBed, TTL_MS, type StoreHarness } from './harness.js';

const SUBNET = { subnet: Prefix.parse('10.42.7.0/24') };

export function storeAdminContract(name: string, make: () => Promise<StoreHarness>): void {
  describe(`store admin contract: ${name}`, () => {
    const bed = new StoreBed(make);
    const admin = (): StoreAdmin => bed.open().admin!;

    /** Keys of at least two subnets that chance did not give to this lease. */
    const without = (lease: Lease): string[] =>
      ['10.42.7.0-24', '10.42.8.0-24', '10.42.9.0-24'].filter((key) => key !== leaseKey(lease));

    it('lists leases and reservations of all hosts, and skips what cannot be read', async () => {
      expect(await admin().list()).toEqual([]);
      const store = bed.open();
      const mine = await bed.acquire(store, '192.0.2.1', { owner: 'node-a' });
      const [other = '', unreadable = ''] = without(mine);
      await bed.harness.put(other, '{"PublicIP":"192.0.2.9"}');
      await bed.harness.put(unreadable, '{');
      await bed.harness.put('junk', '{}');
      const listed = await store.admin!.list();
      expect(listed.map(leaseKey)).toEqual([leaseKey(mine), other].sort());
      const of = (key: string): Lease | undefined => listed.find((lease) => leaseKey(lease) === key);
      expect(of(leaseKey(mine))).toMatchObject({ owner: 'node-a', expiresAt: mine.expiresAt });
      expect(of(other)!.expiresAt).toBeUndefined();
    });

    it('reserves a subnet, which then is its host and nobody else can have', async () => {
      const reserved = await admin().reserve(SUBNET, attributesOf('192.0.2.7'));
      expect(reserved).toMatchObject({ attributes: attributesOf('192.0.2.7') });
      expect(reserved.expiresAt).toBeUndefined();
      expect(await bed.harness.get('10.42.7.0-24')).toBe('{"PublicIP":"192.0.2.7","PublicIPv6":null}');
      const other = bed.open();
      const theirs = await other.acquire({ attributes: attributesOf('192.0.2.8'), previous: SUBNET, ttlMs: TTL_MS });
      expect(sameSubnets(theirs, SUBNET)).toBe(false);
      const lease = await bed.acquire(bed.open(), '192.0.2.7', { owner: 'node-a' });
      expect(sameSubnets(lease, SUBNET)).toBe(true);
      expect(lease.expiresAt).toBeUndefined();
    });

    it("makes a live agent's lease a reservation, and keeps what the agent wrote", async () => {
      const store = bed.open();
      const data = { VNI: 1, VtepMAC: 'c6:d2:32:6f:8f:44' };
      const attributes = attributesOf('192.0.2.1', { backendType: 'vxlan', backendData: data });
      const lease = await store.acquire({ attributes, owner: 'node-a', ttlMs: TTL_MS });
      const reserved = await admin().reserve(lease, attributesOf('192.0.2.1'));
      expect(reserved).toMatchObject({ attributes, owner: 'node-a' });
      await bed.harness.advance(TTL_MS * 3);
      expect(await bed.harness.keys()).toEqual([leaseKey(lease)]);
      const renewed = await store.renew(lease);
      expect(renewed.expiresAt).toBeUndefined();
      const stored = await bed.harness.get(leaseKey(lease));
      expect(stored).toContain('"VtepMAC":"c6:d2:32:6f:8f:44"');
      expect(stored).toContain('"Owner":"node-a"');
    });

    it('does not reserve what others hold, wholly or in part', async () => {
      const held = await bed.acquire(bed.open(), '192.0.2.1');
      const [first = '', second = ''] = without(held);
      const half = first.replace('.0-24', '.128-25');
      await expect(admin().reserve(held, attributesOf('192.0.2.2'))).rejects.toMatchObject({
        code: 'LEASE_CONFLICT',
        message: expect.stringContaining('192.0.2.1'),
      });
      await bed.harness.put(half, '{"PublicIP":"192.0.2.3"}');
      await expect(admin().reserve(parseLeaseKey(first), attributesOf('192.0.2.2'))).rejects.toMatchObject({
        code: 'LEASE_CONFLICT',
        message: expect.stringContaining('192.0.2.3'),
      });
      await bed.harness.put(second, 'junk');
      await expect(admin().reserve(parseLeaseKey(second), attributesOf('192.0.2.2'))).rejects.toMatchObject({
        code: 'LEASE_CONFLICT',
      });
      expect(await bed.harness.keys()).toEqual([leaseKey(held), half, second].sort());
    });

    it.each([
      ['outside the network', '10.77.1.0/24', '192.0.2.1'],
      ['of another length', '10.42.1.0/25', '192.0.2.1'],
      ['of another family', 'fd00::/64', '192.0.2.1'],
      ['for an address inside the overlay', '10.42.1.0/24', '10.42.3.3'],
      ['for no address', '10.42.1.0/24', '0.0.0.0'],
    ])('refuses a subnet %s', async (_why, subnet, publicIp) => {
      await expect(admin().reserve({ subnet: Prefix.parse(subnet) }, attributesOf(publicIp))).rejects.toMatchObject({
        code: 'INVALID_ARGUMENT',
      });
      expect(await bed.harness.keys()).toEqual([]);
    });

    it('refuses a reservation that takes flanneld down', async () => {
      await bed.harness.setConfig(DUAL_CONFIG);
      const dual = { subnet: Prefix.parse('10.42.7.0/24'), subnet6: Prefix.parse('fd00:42:0:7::/64') };
      await expect(admin().reserve(SUBNET, attributesOf('192.0.2.1'))).rejects.toMatchObject({
        code: 'INVALID_ARGUMENT',
      });
      await expect(admin().reserve(dual, attributesOf('192.0.2.1'))).rejects.toMatchObject({
        code: 'INVALID_ARGUMENT',
        message: expect.stringContaining('IPv6'),
      });
      expect(await bed.harness.keys()).toEqual([]);
    });

    it('removes what anybody holds, and says whether there was something', async () => {
      const store = bed.open();
      const lease = await bed.acquire(store, '192.0.2.1');
      const watcher = await bed.watch(store);
      expect(await admin().remove(lease)).toBe(true);
      await watcher.until(() => watcher.log.includes(`own lost ${leaseKey(lease)}`));
      expect(await admin().remove(lease)).toBe(false);
      await bed.harness.put('10.42.7.0-24', 'junk');
      expect(await admin().remove(SUBNET)).toBe(true);
      expect(await bed.harness.keys()).toEqual([]);
    });

    it('reads and writes the config, and lets nothing invalid in', async () => {
      await bed.harness.setConfig(undefined);
      expect(await admin().readConfig()).toBeUndefined();
      await expect(admin().reserve(SUBNET, attributesOf('192.0.2.1'))).rejects.toMatchObject({ code: 'NO_CONFIG' });
      const text = '{ "network": "10.99.0.0/16" }\n';
      await admin().writeConfig(text);
      expect(await admin().readConfig()).toBe(text);
      expect((await bed.open().network()).network?.toString()).toBe('10.99.0.0/16');
      await expect(admin().writeConfig('{"Network":"10.99.0.0/16"')).rejects.toMatchObject({ code: 'INVALID_CONFIG' });
      expect(await admin().readConfig()).toBe(text);
      await bed.harness.setConfig('{');
      expect(await admin().readConfig()).toBe('{');
    });

    it('does nothing once closed', async () => {
      const store = bed.open();
      await store[Symbol.asyncDispose]();
      await expect(store.admin!.list()).rejects.toMatchObject({ code: 'CLOSED' });
      await expect(store.admin!.remove(SUBNET)).rejects.toMatchObject({ code: 'CLOSED' });
    });
  });
}
