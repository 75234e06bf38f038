/** The lab's result: the document of `--json`, the verdict for people, and what to try while it is held. */
import { formatRate } from '../format.js';
import type { CheckResult } from './checks.js';
import type { Figures } from './figures.js';
import type { LabHost } from './lab.js';

export interface LabReport {
  /** Whether the lab ran to its end and every check held. */
  readonly ok: boolean;
  /** Why the lab did not run to its end. */
  readonly error?: string;
  readonly checks: readonly CheckResult[];
  /** Absent when the lab did not run to its end. */
  readonly figures?: Figures;
  readonly hosts: readonly {
    readonly netns: string;
    /** Underlay address. */
    readonly address: string;
    /** The lease, in CIDR form. */
    readonly subnet: string;
    readonly pods: readonly { readonly netns: string; readonly address: string }[];
  }[];
  /** With `--hold`: command lines to try. */
  readonly commands?: readonly string[];
}

export function hostEntries(hosts: readonly LabHost[]): LabReport['hosts'] {
  return hosts.map(({ place, node, pod }) => ({
    netns: place.netns,
    address: place.address.toString(),
    subnet: node.subnet.toString(),
    pods: [{ netns: pod.netns, address: pod.addresses.join(' ') }],
  }));
}

/**
 * Commands that show something while the lab is held.
 *
 * @param enter put before each: nothing as root, `nsenter …` for a lab in a namespace of its own
 */
export function tryCommands(hosts: readonly LabHost[], enter = ''): readonly string[] {
  const [a, b] = hosts;
  if (a === undefined || b === undefined) return [];
  const inside = (netns: string, command: string): string => `${enter}ip netns exec ${netns} ${command}`;
  return [
    inside(a.pod.netns, `ping ${b.pod.address.toString()}`),
    inside(b.pod.netns, 'iperf3 -s -1 -D'),
    inside(a.pod.netns, `iperf3 -C cubic -c ${b.pod.address.toString()}`),
    ...a.node.hints.map((hint) => `${enter}${hint}`),
  ];
}

/** The last lines of a run that came to its end. */
export function verdict(checks: readonly CheckResult[], figures: Figures): string {
  const failed = checks.filter((check) => !check.ok);
  const { rttIdleUs, rttLoadUs, tcpGbitPerSecond, peakPacketsPerSecond } = figures;
  const rtt = [
    rttIdleUs === null ? '' : `RTT ${String(rttIdleUs.p50)} µs idle`,
    rttLoadUs === null ? '' : `${String(rttLoadUs.p50)} µs under load`,
  ].filter((part) => part !== '');
  const summary = `TCP ${formatRate(tcpGbitPerSecond * 1e9, 'bit/s')}, up to ${formatRate(peakPacketsPerSecond, 'packets/s')}, ${rtt.join(', ')} (between programs in the pods)`;
  const judgement =
    failed.length === 0
      ? `PASSED: all ${String(checks.length)} checks held`
      : `FAILED: ${String(failed.length)} of ${String(checks.length)} checks: ${failed.map((check) => check.name).join(', ')}`;
  return `${summary}\n${judgement}\n`;
}
