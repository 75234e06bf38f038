/** A name for this host in a lease store. */
import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import type { Address } from '../net/prefix.js';

const MACHINE_ID_FILES = ['/etc/machine-id', '/var/lib/dbus/machine-id'];

/**
 * A name that stays the same across restarts of the agent and of the host, and differs between hosts: a hash of the
 * machine id (machine-id(5) asks not to publish the id itself) and the public address, because cloned machines share
 * the former and hosts behind one NAT the latter. Undefined where there is no machine id: the host is then known by
 * its public address alone, as in flannel.
 */
export async function hostIdentity(
  publicIp: Address,
  files: readonly string[] = MACHINE_ID_FILES,
): Promise<string | undefined> {
  for (const file of files) {
    const id = (await readFile(file, 'utf8').catch(() => '')).trim();
    if (!/^[0-9a-f]{32}$/i.test(id)) continue;
    return createHash('sha256').update(`podwire ${id.toLowerCase()} ${publicIp.toString()}`).digest('hex').slice(0, 32);
  }
  return undefined;
}
