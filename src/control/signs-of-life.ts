/** Signs of life of the other hosts where the backend has no engine that asks for them. */
import type { Logger } from '../dataplane/logger.js';
import { ProbePort } from '../dataplane/probe-port.js';
import { messageOf } from '../errors.js';
import type { SelectedInterface } from '../host/select-interface.js';
import type { Address } from '../net/prefix.js';
import type { Lease } from './lease.js';
import type { OverlayLease } from './overlay.js';

export class SignsOfLife {
  readonly #leases: () => Iterable<Lease>;
  readonly #logger: Logger;
  #port: ProbePort | undefined;

  /** @param leases of the hosts to ask. */
  constructor(leases: () => Iterable<Lease>, logger: Logger) {
    this.#leases = leases;
    this.#logger = logger;
  }

  get isOpen(): boolean {
    return this.#port !== undefined;
  }

  /** Begins, or begins again with other addresses. A port that cannot be had is told, and nothing is asked then. */
  async open({ address, address6 }: SelectedInterface): Promise<void> {
    await this.close();
    try {
      this.#port = await ProbePort.open({
        addresses: [address, address6].filter((each) => each !== undefined),
        peers: () => Array.from(this.#leases(), underlayAddress),
        logger: this.#logger,
      });
    } catch (error) {
      this.#logger.warn({}, messageOf(error));
    }
  }

  async close(): Promise<void> {
    const port = this.#port;
    this.#port = undefined;
    await port?.[Symbol.asyncDispose]();
  }

  of(lease: Lease): Pick<OverlayLease, 'probe' | 'lastHeardMs'> {
    const address = underlayAddress(lease);
    const probe = this.#port?.of(address);
    const lastHeardMs = this.#port?.lastHeardMs(address);
    return { ...(probe === undefined ? {} : { probe }), ...(lastHeardMs === undefined ? {} : { lastHeardMs }) };
  }
}

/** Where a host is asked, whatever its lease carries. */
function underlayAddress({ attributes: { publicIp, publicIpv6 } }: Lease): Address {
  return publicIp.isUnspecified && publicIpv6 !== undefined ? publicIpv6 : publicIp;
}
