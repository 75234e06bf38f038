/**
 * The `alloc` backend: a lease and the subnet file, nothing else. Packets between the hosts are somebody else's business
 * (the cloud's routing table, a BGP daemon), and so are the other hosts' leases.
 */
import { listOwnAddresses } from '../../host/overlay-link.js';
import type { Address } from '../../net/prefix.js';
import type { Lease, LeaseAttributes } from '../lease.js';
import type { Backend, BackendOptions } from './backend.js';
import { ownPublicAddresses } from './underlay.js';

export class AllocBackend implements Backend {
  readonly type = 'alloc';
  readonly dataplane = undefined;
  readonly stats = undefined;
  readonly isPassive = true;
  readonly attributes: LeaseAttributes;
  readonly ownAddresses: readonly Address[];
  readonly device: string;
  /** The underlay's: there is no tunnel. */
  readonly mtu: number;
  readonly facts = { carriedBy: 'nobody: alloc hands out subnets only' };
  readonly closed: Promise<void>;
  #settleClosed!: () => void;

  private constructor({ underlay }: BackendOptions, own: readonly Address[]) {
    // As udp's, alloc's leases name no backend type (contract 2.1).
    this.attributes = { ...ownPublicAddresses(underlay), backendType: '' };
    const { publicIp, publicIpv6 } = underlay;
    this.ownAddresses = [...[publicIp, publicIpv6].filter((address) => address !== undefined), ...own];
    this.device = underlay.name;
    this.mtu = underlay.mtu;
    this.closed = new Promise((resolve) => (this.#settleClosed = resolve));
  }

  static async open(options: BackendOptions): Promise<AllocBackend> {
    return new AllocBackend(options, await listOwnAddresses(options.runner));
  }

  async begin(_lease: Lease, publish: () => Promise<void>): Promise<void> {
    await publish();
  }

  async changeSubnet(_from: Lease, _to: Lease, publish: () => Promise<void>): Promise<void> {
    await publish();
  }

  refusal(): string {
    return 'the alloc backend sets no routes';
  }

  setRoute(): void {}

  removeRoute(): boolean {
    return false;
  }

  routesComplete(): void {}

  async close(): Promise<void> {
    this.#settleClosed();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}
