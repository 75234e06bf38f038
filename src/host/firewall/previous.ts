/** The networks of the last run with this subnet file, ours or flanneld's: its rules name them. */
import { readFile } from 'node:fs/promises';
import { Prefix } from '../../net/prefix.js';
import { parseDotenv } from '../subnet-env.js';

/** Networks of FLANNEL_NETWORK and FLANNEL_IPV6_NETWORK; none without a readable file. */
export async function readPreviousNetworks(subnetFile: string): Promise<Prefix[]> {
  const values = parseDotenv(await readFile(subnetFile, 'utf8').catch(() => ''));
  return ['FLANNEL_NETWORK', 'FLANNEL_IPV6_NETWORK']
    .flatMap((key) => (values.get(key) ?? '').split(','))
    .map((text) => Prefix.tryParse(text.trim()))
    .filter((prefix) => prefix !== undefined);
}
