/**
 * Programs of this package that others of it start. The paths hold for this module, two directories below the package,
 * and for the bundle, which is at the same depth.
 */
import { fileURLToPath } from 'node:url';

/** `podwire` itself. */
export const PODWIRE = fileURLToPath(new URL('../bundle/main.cjs', import.meta.url));
/** What the lab runs inside a pod's namespace. */
export const LAB_ENDPOINT = fileURLToPath(new URL('../cli/lab/endpoint.js', import.meta.url));
