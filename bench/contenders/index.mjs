// @ts-check
/** All contenders, in the order of the report. */
import { flanneld } from './flanneld.mjs';
import { direct, vxlan } from './kernel.mjs';
import { nebula } from './nebula.mjs';
import { podwire, podwireNoSpin, podwirePlain } from './podwire.mjs';
import { podwireToVxlan, podwireVxlan, vxlanToPodwire } from './vxlan.mjs';
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
  podwireVxlan,
  podwireToVxlan,
  vxlanToPodwire,
  flanneld,
  wireguardGo,
  nebula,
];

/** Whom the mode `backends` measures: podwire's backends, and the baseline. */
export const BACKENDS = [vxlan, podwire, podwireVxlan, podwireToVxlan, vxlanToPodwire].map(({ name }) => name);
