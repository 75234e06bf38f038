/** The `vxlan` backend: the kernel's device or podwire's own tunnel end point, as `Mode` says. */
import type { Backend, BackendOptions } from './backend.js';
import { openKernelVxlan } from './vxlan-kernel.js';
import { vxlanConfig } from './vxlan-config.js';

/** The table's entry. */
export const VxlanBackend = {
  open(options: BackendOptions): Promise<Backend> {
    return openKernelVxlan(options, vxlanConfig(options.network, options.vxlanMode));
  },
};
