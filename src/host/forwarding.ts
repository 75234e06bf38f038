/**
 * IP forwarding: without it no packet passes between a pod's bridge and the TUN. flanneld leaves it to the CNI bridge
 * plugin; podwire sets it, with a word in the log.
 */
import type { Family } from '../net/prefix.js';
import type { DesiredSwitch } from './guard.js';
import { ensureSwitch, readSwitch } from './system.js';

/** What happened, one line each; `ok: false` means that packets will not be forwarded. */
export interface ForwardingNote {
  readonly ok: boolean;
  readonly text: string;
}

const FORWARDING: Readonly<Record<Family, DesiredSwitch>> = {
  4: { path: 'net/ipv4/ip_forward', value: '1' },
  6: { path: 'net/ipv6/conf/all/forwarding', value: '1' },
};

/** What the guard keeps switched on. */
export function forwardingSwitches(families: readonly Family[]): DesiredSwitch[] {
  return families.map((family) => FORWARDING[family]);
}

/**
 * Switches forwarding on for the given families. An IPv6 host that forwards stops accepting router advertisements, so
 * the underlay interface keeps them explicitly (`accept_ra` 2), or it would lose its default route.
 *
 * @param procSys root of the switches; replaced in tests.
 */
export async function enableForwarding(
  families: readonly Family[],
  underlayInterface: string,
  procSys = '/proc/sys',
): Promise<ForwardingNote[]> {
  const notes: ForwardingNote[] = [];
  const set = async (name: string, path: string, value: string): Promise<void> => {
    const before = await readSwitch(`${procSys}/${path}`);
    const outcome = await ensureSwitch(`${procSys}/${path}`, value);
    if (outcome === 'set') {
      notes.push({ ok: true, text: `${name} was ${before ?? 'unreadable'}: set to ${value}` });
    } else if (outcome !== 'already') {
      const command = `sysctl -w ${path.replaceAll('/', '.')}=${value}`;
      notes.push({ ok: false, text: `${name} is not ${value} and cannot be set (${outcome.failed}): run ${command}` });
    }
  };
  if (families.includes(4)) await set('net.ipv4.ip_forward', FORWARDING[4].path, '1');
  if (families.includes(6)) {
    const all = FORWARDING[6].path;
    const acceptRa = `net/ipv6/conf/${underlayInterface}/accept_ra`;
    if ((await readSwitch(`${procSys}/${all}`)) === '0' && (await readSwitch(`${procSys}/${acceptRa}`)) === '1') {
      await set(`net.ipv6.conf.${underlayInterface}.accept_ra`, acceptRa, '2');
    }
    await set('net.ipv6.conf.all.forwarding', all, '1');
  }
  return notes;
}
