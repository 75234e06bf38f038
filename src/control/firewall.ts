/** The overlay's share of the host's firewall: which rules the network and the own lease ask for. */
import type { Logger } from '../dataplane/logger.js';
import { PodwireError } from '../errors.js';
import type { Early } from '../host/early.js';
import type { Runner } from '../host/exec.js';
import { type FirewallStats, HostFirewall } from '../host/firewall/firewall.js';
import { firewallKey, networkKey } from '../host/firewall/names.js';
import { readPreviousNetworks } from '../host/firewall/previous.js';
import type { FirewallTools } from '../host/firewall/tools.js';
import type { Prefix } from '../net/prefix.js';
import { type NetworkConfig, networksOf } from './network-config.js';

export interface FirewallOptions {
  /** Who keeps the rules; default `auto`: nft where it works, else iptables. `none`: nothing is made or removed. */
  readonly manager?: 'auto' | 'nft' | 'iptables' | 'none';
  /** Accepts for forwarded packets from and to pods, also beside a firewall that drops them. Default true. */
  readonly forward?: boolean;
  /** Random source ports for masqueraded connections, where the host can do that. Default true. */
  readonly randomFully?: boolean;
  /** A blackhole route for the own subnet, behind any bridge's. Default false. */
  readonly blackhole?: boolean;
  /** Period of the checks in milliseconds (changes are also found through events); default 5000. */
  readonly resyncMs?: number;
}

const MANAGERS: readonly string[] = ['auto', 'nft', 'iptables', 'none'];

export interface OverlayFirewallOptions {
  readonly firewall: FirewallOptions;
  readonly masquerade: boolean;
  readonly network: NetworkConfig;
  readonly subnetFile: string | false;
  /** The host's programs, where they were looked for before the network was known. */
  readonly tools?: Early<FirewallTools>;
  readonly runner: Runner;
  readonly logger: Logger;
}

export class OverlayFirewall {
  readonly #options: OverlayFirewallOptions;
  readonly #host: HostFirewall;

  private constructor(options: OverlayFirewallOptions, host: HostFirewall) {
    this.#options = options;
    this.#host = host;
  }

  /**
   * Looks at the host; nothing is changed yet. Call it before the subnet file is written: it tells which rules an
   * earlier run has left.
   *
   * @throws {PodwireError} `INVALID_ARGUMENT`.
   */
  static async open(options: OverlayFirewallOptions): Promise<OverlayFirewall> {
    const { firewall, network, subnetFile, tools, runner, logger } = options;
    const { manager = 'auto', resyncMs } = firewall;
    if (!MANAGERS.includes(manager)) {
      throw new PodwireError(
        'INVALID_ARGUMENT',
        `firewall.manager ${JSON.stringify(manager)} is not one of ${MANAGERS.join(', ')}`,
      );
    }
    if (resyncMs !== undefined && !(resyncMs >= 100 && resyncMs <= 86_400_000)) {
      throw new PodwireError('INVALID_ARGUMENT', `firewall.resyncMs ${resyncMs} is not from 100 ms to one day`);
    }
    const host = await HostFirewall.open({
      manager,
      key: subnetFile === false ? networkKey(networksOf(network)) : await firewallKey(subnetFile),
      runner,
      ...(tools === undefined ? {} : { tools }),
      configAsksNft: network.enableNFTables,
      previousNetworks: subnetFile === false ? [] : await readPreviousNetworks(subnetFile),
      ...(resyncMs === undefined ? {} : { resyncMs }),
      onNotice: ({ level, text, fields }) => logger[level]({ ...fields }, text),
    });
    return new OverlayFirewall(options, host);
  }

  /**
   * Puts the rules for these own subnets in force. Never rejects: what cannot be done is logged and tried again.
   *
   * @returns when they are in force or have failed; they are verified after that.
   */
  async apply(subnets: readonly Prefix[]): Promise<void> {
    const { firewall, masquerade, network } = this.#options;
    const plan = {
      networks: networksOf(network),
      subnets,
      masquerade,
      forward: firewall.forward ?? true,
      randomFully: firewall.randomFully ?? true,
      blackhole: firewall.blackhole ?? false,
    };
    await new Promise<void>((resolve) => void this.#host.apply(plan, resolve).then(() => resolve()));
  }

  get stats(): FirewallStats {
    return this.#host.stats();
  }

  /** Stops watching; the rules stay. */
  close(): Promise<void> {
    return this.#host.close();
  }
}
