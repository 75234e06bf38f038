/** The subnet file of a joined overlay: what stands in it, and whether it could be written. */
import { formatSubnetEnv, type SubnetEnv, subnetEnvEquals, writeSubnetEnv } from '../host/subnet-env.js';
import { type Lease, subnetsOf } from './lease.js';
import type { NetworkConfig } from './network-config.js';

export interface SubnetFileContent {
  readonly network: NetworkConfig;
  readonly lease: Lease;
  /** Overlay MTU in bytes. */
  readonly mtu: number;
}

export class SubnetFile {
  readonly #path: string | false;
  readonly #ipMasq: boolean;
  readonly #content: () => SubnetFileContent;
  #written = false;

  /** @param content asked at each write. */
  constructor(path: string | false, ipMasq: boolean, content: () => SubnetFileContent) {
    this.#path = path;
    this.#ipMasq = ipMasq;
    this.#content = content;
  }

  /** Undefined when none was asked for. */
  get state(): { readonly path: string; readonly written: boolean } | undefined {
    return this.#path === false ? undefined : { path: this.#path, written: this.#written };
  }

  /** @throws {PodwireError} `SYSTEM`. */
  async write(): Promise<void> {
    if (this.#path === false) return;
    this.#written = false;
    await writeSubnetEnv(this.#path, this.#env);
    this.#written = true;
  }

  /** Whether the file says the right thing, whoever wrote it. */
  async isRight(): Promise<boolean> {
    if (this.#path === false) return true;
    this.#written = await subnetEnvEquals(this.#path, formatSubnetEnv(this.#env));
    return this.#written;
  }

  get #env(): SubnetEnv {
    const { network, lease, mtu } = this.#content();
    const subnets = subnetsOf(lease);
    const subnet = subnets.find(({ family }) => family === 4);
    const ipv6Subnet = subnets.find(({ family }) => family === 6);
    return {
      mtu,
      ipMasq: this.#ipMasq,
      ...(network.network === undefined || subnet === undefined ? {} : { network: network.network, subnet }),
      ...(network.ipv6Network === undefined || ipv6Subnet === undefined
        ? {}
        : { ipv6Network: network.ipv6Network, ipv6Subnet }),
    };
  }
}
