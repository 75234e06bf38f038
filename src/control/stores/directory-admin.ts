/** What operators do to a directory of leases. Needs no agent and no monitor: it looks at the files as they are. */
import { errnoOf, PodwireError } from '../../errors.js';
import type { Clock } from '../clock.js';
import { encodeLease, tryDecodeLease, type StoredLease } from '../lease-codec.js';
import { leaseKey, tryParseLeaseKey } from '../lease-key.js';
import {
  isExpired,
  sameHost,
  sameSubnets,
  type Lease,
  type LeaseAttributes,
  type LeaseSubnets,
  type StoreAdmin,
} from '../lease.js';
import { parseNetworkConfig, type NetworkConfig } from '../network-config.js';
import { checkReservation } from '../reservation.js';
import type { LeaseFiles } from './lease-files.js';

export interface DirectoryAdminOptions {
  readonly files: LeaseFiles;
  readonly clock: Clock;
  readonly skewMs: number;
  /** The config, or the error that says what is wrong with it. */
  readonly network: () => Promise<NetworkConfig>;
  /** @throws PodwireError ABORTED, CLOSED. */
  readonly check: (signal: AbortSignal | undefined, what: string) => void;
}

interface Found extends LeaseSubnets {
  readonly name: string;
  readonly text: string;
  readonly stored: StoredLease | undefined;
}

export class DirectoryAdmin implements StoreAdmin {
  readonly #options: DirectoryAdminOptions;

  constructor(options: DirectoryAdminOptions) {
    this.#options = options;
  }

  async list(signal?: AbortSignal): Promise<readonly Lease[]> {
    this.#options.check(signal, 'listing the leases');
    return (await this.#find()).flatMap(({ subnet, subnet6, stored }) => {
      return stored ? [leaseOf({ subnet, ...(subnet6 && { subnet6 }) }, stored)] : [];
    });
  }

  async reserve(subnets: LeaseSubnets, attributes: LeaseAttributes): Promise<Lease> {
    const { files, network, check } = this.#options;
    check(undefined, 'reserving a subnet');
    const config = await network();
    await files.ensureSubnets();
    const present = await this.#checkAgainst(config, subnets, attributes);
    const { expiresAt: _ends, ...kept } = present?.stored ?? { attributes };
    const text = encodeLease(kept.attributes, kept);
    const name = present?.name ?? leaseKey(subnets);
    const isOurs = (before: string): boolean => {
      const stored = tryDecodeLease(before);
      return stored !== undefined && sameHost(stored.attributes, attributes);
    };
    const done = present ? (await files.replace(name, isOurs, text)) === 'replaced' : await files.create(name, text);
    if (!done) throw taken(subnets);
    try {
      // Another name for the same addresses can have appeared meanwhile: whoever sees it gives way.
      await this.#checkAgainst(config, subnets, attributes);
    } catch (error) {
      await files.remove(name, (now) => now === text);
      throw error;
    }
    return leaseOf(subnets, kept);
  }

  async remove(subnets: LeaseSubnets): Promise<boolean> {
    const { files, check } = this.#options;
    check(undefined, 'removing a lease');
    const found = (await this.#find()).find((entry) => sameSubnets(entry, subnets));
    return found !== undefined && files.remove(found.name, () => true);
  }

  async readConfig(signal?: AbortSignal): Promise<string | undefined> {
    this.#options.check(signal, 'reading the network config');
    return this.#options.files.readConfig();
  }

  async writeConfig(json: string): Promise<void> {
    this.#options.check(undefined, 'writing the network config');
    parseNetworkConfig(json);
    await this.#options.files.writeConfig(json);
  }

  /** The entry that has exactly these subnets. @throws PodwireError as {@link checkReservation}. */
  async #checkAgainst(
    config: NetworkConfig,
    subnets: LeaseSubnets,
    attributes: LeaseAttributes,
  ): Promise<Found | undefined> {
    const { files, clock, skewMs } = this.#options;
    const found = await this.#find();
    const present = found.find((entry) => sameSubnets(entry, subnets));
    const live = found.filter((entry) => entry === present || !isExpired(entry.stored ?? {}, clock.now(), skewMs));
    const held = live.map((entry) => {
      return { ...entry, path: files.leasePath(entry.name), attributes: entry.stored?.attributes };
    });
    checkReservation(config, subnets, attributes, held);
    return present;
  }

  async #find(): Promise<Found[]> {
    const { files } = this.#options;
    const names = await files.list().catch((error: unknown) => {
      if (errnoOf(error) === 'ENOENT') return [];
      throw error;
    });
    const found: Found[] = [];
    for (const name of names) {
      const subnets = tryParseLeaseKey(name);
      if (!subnets) continue;
      const result = await files.read(name);
      if (result.kind === 'absent' || result.kind === 'unchanged') continue;
      const text = result.kind === 'text' ? result.file.text : '';
      found.push({ ...subnets, name, text, stored: tryDecodeLease(text) });
    }
    return found;
  }
}

function leaseOf(subnets: LeaseSubnets, { attributes, expiresAt, owner }: StoredLease): Lease {
  const ends = expiresAt && { expiresAt };
  return { ...subnets, attributes, ...ends, ...(owner !== undefined && { owner }) };
}

function taken(subnets: LeaseSubnets): PodwireError {
  return new PodwireError(
    'LEASE_CONFLICT',
    `cannot reserve ${leaseKey(subnets)}: another host has just taken it; choose another subnet, or release it first`,
  );
}
