/**
 * The rules themselves, as flannel's iptables manager means them (contract 8), in a form that nft and iptables are
 * both written from. C is the pod network, P the own subnet.
 */
import type { Family, Prefix } from '../../net/prefix.js';

export interface FirewallPlan {
  /** Pod networks, at most one of a family. */
  readonly networks: readonly Prefix[];
  /** Own leases inside them. */
  readonly subnets: readonly Prefix[];
  /** Packets from pods to anywhere but pods leave with this host's address. */
  readonly masquerade: boolean;
  /** Packets from and to pods may be forwarded. */
  readonly forward: boolean;
  /** Source ports of masqueraded connections are chosen at random, where the host can do that. */
  readonly randomFully: boolean;
}

/** Packets that kube-proxy will masquerade itself carry this bit; the others of the mark are somebody else's. */
export const MASQUERADE_MARK = 0x4000;

export interface AddressMatch {
  readonly prefix: string;
  readonly not: boolean;
}

export interface MasqueradeRule {
  /** Matches on {@link MASQUERADE_MARK} instead of addresses. */
  readonly marked?: true;
  readonly source?: AddressMatch;
  readonly destination?: AddressMatch;
  readonly verdict: 'return' | 'masquerade';
}

export interface ForwardRule {
  readonly source?: string;
  readonly destination?: string;
}

const MULTICAST: Readonly<Record<Family, string>> = { 4: '224.0.0.0/4', 6: 'ff00::/8' };

/** Whether a prefix of a rule is the multicast range, which names no network. */
export function isMulticastRange(text: string): boolean {
  return text === MULTICAST[4] || text === MULTICAST[6];
}

/** The rules of one family in order; none without a network and a subnet of that family. */
export function masqueradeRules(plan: FirewallPlan, family: Family): MasqueradeRule[] {
  const network = plan.networks.find((prefix) => prefix.family === family);
  const subnet = plan.subnets.find((prefix) => prefix.family === family);
  if (!plan.masquerade || network === undefined || subnet === undefined) return [];
  const is = (prefix: string): AddressMatch => ({ prefix, not: false });
  const not = (prefix: string): AddressMatch => ({ prefix, not: true });
  const [pods, own] = [network.toString(), subnet.toString()];
  return [
    { marked: true, verdict: 'return' },
    { source: is(own), destination: is(pods), verdict: 'return' },
    { source: is(pods), destination: is(own), verdict: 'return' },
    // A service's or a neighbour's packet to a pod here keeps its source: the pod answers through this host.
    { source: not(pods), destination: is(own), verdict: 'return' },
    { source: is(pods), destination: not(MULTICAST[family]), verdict: 'masquerade' },
    // To a pod elsewhere the answer would go astray.
    { source: not(pods), destination: is(pods), verdict: 'masquerade' },
  ];
}

export function forwardRules(plan: FirewallPlan, family: Family): ForwardRule[] {
  if (!plan.forward) return [];
  return plan.networks
    .filter((network) => network.family === family)
    .flatMap((network) => [{ source: network.toString() }, { destination: network.toString() }]);
}

/** Families in which the plan has any rule. */
export function familiesOf(plan: FirewallPlan): Family[] {
  return ([4, 6] as const).filter(
    (family) => masqueradeRules(plan, family).length > 0 || forwardRules(plan, family).length > 0,
  );
}
