// @ts-check
/** All contenders, in the order of the report. */
import { copies } from './copies.mjs';
import { flanneld } from './flanneld.mjs';
import { direct, vxlan } from './kernel.mjs';
import { nebula } from './nebula.mjs';
import {
  podwire,
  podwireHostGw,
  podwireIpip,
  podwireIpv6,
  podwireNoSpin,
  podwirePlain,
  podwireVxlanKernel,
  podwireWireguard,
} from './podwire.mjs';
import { podwireToVxlan, podwireVxlan, podwireVxlanIpv6, vxlanToPodwire } from './vxlan.mjs';
import { wireguardGo } from './wireguard.mjs';

/** The contender that ratios refer to. */
export const BASELINE = vxlan.name;

/** @type {readonly import('./contender.mjs').Contender[]} */
export const CONTENDERS = [
  direct,
  vxlan,
  podwire,
  podwireNoSpin,
  podwirePlain,
  podwireIpv6,
  podwireVxlan,
  podwireVxlanIpv6,
  podwireToVxlan,
  vxlanToPodwire,
  podwireVxlanKernel,
  podwireHostGw,
  podwireIpip,
  podwireWireguard,
  copies,
  flanneld,
  wireguardGo,
  nebula,
];

/** Whom the mode `backends` measures: podwire's backends, and by hand what two of them set up. */
export const BACKENDS = [
  direct,
  vxlan,
  podwire,
  podwireIpv6,
  podwireVxlan,
  podwireVxlanIpv6,
  podwireToVxlan,
  vxlanToPodwire,
  podwireVxlanKernel,
  podwireHostGw,
  podwireIpip,
  podwireWireguard,
].map(({ name }) => name);
