/** Wire formats: what stands between the outer UDP header and the inner packet, and what that costs. */
import type { Family } from '../net/prefix.js';

export interface Encapsulation {
  /** Name of the backend that uses it, as in the network config. */
  readonly name: string;
  /** UDP port when nobody names one. */
  readonly defaultPort: number;
  /** Bytes between the outer UDP header and the inner IP header. */
  readonly headerBytes: number;
  /** Bytes that an inner packet grows by on an underlay of this family: outer IP, UDP and the header above. */
  overhead(outer: Family): number;
}
