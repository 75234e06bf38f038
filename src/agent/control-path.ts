import { basename, dirname, join } from 'node:path';

/** Where the control socket of the agent that owns this subnet file is: two agents on a host have two of both. */
export function defaultControlSocket(subnetFile: string): string {
  return join(dirname(subnetFile), `podwire-${basename(subnetFile).replace(/\.env$/, '')}.sock`);
}
