// @ts-check
/** All contenders, in the order of the report. */
import { flanneld } from './flanneld.mjs';
import { direct, vxlan } from './kernel.mjs';
import { nebula } from './nebula.mjs';
import { podwire, podwireNoSpin, podwirePlain } from './podwire.mjs';
import { wireguardGo } from './wireguard.mjs';

/** The contender that ratios refer to. */
export const BASELINE = vxlan.name;

/** @type {readonly import('./contender.mjs').Contender[]} */
export const CONTENDERS = [direct, vxlan, podwire, podwireNoSpin, podwirePlain, flanneld, wireguardGo, nebula];
