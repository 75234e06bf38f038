/**
 * The `vxlan` backend: the kernel's device or podwire's own tunnel end point, as `Mode` in the network config or
 * `--vxlan-mode` says. `auto` takes a kernel device over that is there with the same parameters, so that a swap loses
 * nothing, and is user space otherwise.
 */
import { constants } from 'node:fs';
import { access } from 'node:fs/promises';
import type { Backend, BackendOptions } from './backend.js';
import { type VxlanConfig, vxlanConfig } from './vxlan-config.js';
import { existingDevice, openKernelVxlan, vxlanLegs } from './vxlan-kernel.js';
import { UserVxlanBackend } from './vxlan-user.js';

/** The table's entry. */
export const VxlanBackend = {
  /** @throws {PodwireError} `INVALID_CONFIG`, and as the two ways throw. */
  async open(options: BackendOptions): Promise<Backend> {
    const config = vxlanConfig(options.network, options.vxlanMode);
    const { mode, why } = await chooseMode(options, config);
    options.logger.info(
      { mode },
      `vxlan is carried by ${mode === 'kernel' ? "the kernel's device" : 'podwire'}: ${why}`,
    );
    return mode === 'kernel' ? openKernelVxlan(options, config) : UserVxlanBackend.open(options, config);
  },
};

async function chooseMode(
  options: BackendOptions,
  config: VxlanConfig,
): Promise<{ readonly mode: 'user' | 'kernel'; readonly why: string }> {
  if (config.mode !== 'auto') {
    const from = options.vxlanMode === undefined ? "the network config's Mode" : '--vxlan-mode';
    return { mode: config.mode, why: `${from} says so` };
  }
  const legs = vxlanLegs(options, config);
  const found = await Promise.all(
    legs.map((leg) => existingDevice(options.runner, leg, config, options.underlay.name)),
  );
  const names = legs.map(({ device }) => device).join(' and ');
  if (found.every((device) => device?.fits === true)) {
    return { mode: 'kernel', why: `${names} is there with the same parameters (--vxlan-mode user changes that)` };
  }
  if (config.gbp) return { mode: 'kernel', why: 'GBP needs the kernel' };
  if (!(await hasTun(options))) return { mode: 'kernel', why: 'there is no /dev/net/tun to carry packets ourselves' };
  const there = found.some((device) => device?.kind === 'vxlan');
  return { mode: 'user', why: there ? `${names} is there with other parameters` : `there is no ${names} to take over` };
}

async function hasTun({ openDataplane }: BackendOptions): Promise<boolean> {
  if (openDataplane !== undefined) return true;
  return await access('/dev/net/tun', constants.R_OK | constants.W_OK).then(
    () => true,
    () => false,
  );
}
