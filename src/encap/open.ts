/** The table of wire formats: one line each. */
import { ipipEncapsulation } from './ipip.js';
import { udpEncapsulation } from './udp.js';
import { vxlanEncapsulation } from './vxlan.js';
import type { Encapsulation, EncapsulationSpec } from './encapsulation.js';

/** @throws PodwireError INVALID_ARGUMENT or INVALID_ADDRESS */
export function openEncapsulation(spec: EncapsulationSpec): Encapsulation {
  if (spec === 'udp') return udpEncapsulation;
  return spec === 'ipip' ? ipipEncapsulation : vxlanEncapsulation(spec);
}
