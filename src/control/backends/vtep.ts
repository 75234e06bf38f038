/**
 * The hardware address of this host's tunnel end point. Peers hold it in permanent entries, so it must outlive
 * restarts and reboots: a device that is there keeps its own; else it is what the state file says; else it is derived
 * from the host's identity, which is the same after every reboot and needs no file.
 */
import { createHash, randomBytes } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import type { Logger } from '../../dataplane/logger.js';
import { errnoOf, messageOf } from '../../errors.js';
import { hostIdentity } from '../../host/identity.js';
import { replaceFile } from '../../host/replace-file.js';
import { type Address, type Family, MacAddress } from '../../net/prefix.js';

export interface VtepIdentity {
  readonly vni: number;
  readonly family: Family;
  readonly publicIp: Address;
  /** Start of the state file's name (see BackendOptions); absent: nothing is kept. */
  readonly state?: string | undefined;
  readonly logger: Logger;
}

/**
 * The address to use, and keeps it if it could not be found again otherwise.
 *
 * @param existing the address of the device that is there.
 */
export async function vtepMac(identity: VtepIdentity, existing: MacAddress | undefined): Promise<MacAddress> {
  const derived = await deriveMac(identity);
  const file = stateFile(identity);
  const kept = file === undefined ? undefined : await readMac(file, identity.logger);
  const mac = existing ?? kept ?? derived ?? MacAddress.random(randomBytes(6));
  if (file !== undefined && !(kept?.equals(mac) ?? derived?.equals(mac) ?? false))
    await keepMac(file, mac, identity.logger);
  return mac;
}

/** Undefined for a host without machine id. */
async function deriveMac({ vni, family, publicIp }: VtepIdentity): Promise<MacAddress | undefined> {
  const identity = await hostIdentity(publicIp);
  if (identity === undefined) return undefined;
  const digest = createHash('sha256').update(`podwire vtep ${identity} ${vni} ${family}`).digest();
  return MacAddress.random(digest.subarray(0, 6));
}

function stateFile({ state, vni, family }: VtepIdentity): string | undefined {
  return state === undefined ? undefined : `${state}.vtep-${vni}-ipv${family}`;
}

async function readMac(file: string, logger: Logger): Promise<MacAddress | undefined> {
  try {
    return MacAddress.parse((await readFile(file, 'utf8')).trim());
  } catch (error) {
    if (errnoOf(error) !== 'ENOENT') logger.warn({ file }, `the kept VtepMAC cannot be used: ${messageOf(error)}`);
    return undefined;
  }
}

async function keepMac(file: string, mac: MacAddress, logger: Logger): Promise<void> {
  try {
    await replaceFile(file, `${mac.toString()}\n`, 0o644);
  } catch (error) {
    logger.warn(
      { file },
      `the VtepMAC ${mac.toString()} cannot be kept, after a reboot it will be another: ${messageOf(error)}`,
    );
  }
}
