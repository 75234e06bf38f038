/**
 * The lab's checks on a quiet overlay. Each says what it saw, as one line, and which drops it provokes on purpose; the
 * last check of a run counts all others as unexpected. The checks under load are in load.ts.
 */
import { run } from '../../host/exec.js';
import { messageOf } from '../../errors.js';
import type { Address, Family } from '../../net/prefix.js';
import { NETWORKS, type PodPlace } from './topology.js';
import type { Lab, LabHost } from './lab.js';
import type { UdpEchoResult } from './protocol.js';

export interface CheckResult {
  readonly name: string;
  readonly ok: boolean;
  /** One line: what was seen, with figures. */
  readonly detail: string;
}

/** What a check found. */
export interface Finding {
  readonly ok: boolean;
  readonly detail: string;
}

export interface Check {
  readonly name: string;
  /** Drop counters that this check makes grow when all is well, and by how much at most. */
  readonly provokes?: Readonly<Record<string, number>>;
  /** @param over which of the pods' addresses are used. */
  readonly run: (lab: Lab, over: Family) => Promise<Finding>;
}

const IP_UDP_BYTES: Readonly<Record<Family, number>> = { 4: 28, 6: 48 };
const TIMEOUT_MS = 5_000;
/** The largest UDP payload: IPv6 does not count its own header. */
const LARGEST_DATAGRAM: Readonly<Record<Family, number>> = { 4: 65_507, 6: 65_527 };

/** Runs one check; what it throws is its finding. */
export async function runCheck(check: Check, lab: Lab, over: Family = lab.traits.families[0]!): Promise<CheckResult> {
  const name = over === lab.traits.families[0] ? check.name : `${check.name}-v${String(over)}`;
  try {
    return { name, ...(await check.run(lab, over)) };
  } catch (error) {
    return { name, ok: false, detail: messageOf(error) };
  }
}

/** Runs `work` for both directions of the pair, and with more hosts for each neighbour in the ring, one by one. */
async function bothWays(lab: Lab, work: (from: LabHost, to: LabHost) => Promise<Finding>): Promise<Finding> {
  const [a, b] = lab.pair;
  const ring = lab.hosts.map((host): [LabHost, LabHost] => [host, lab.next(host)]);
  const directions: [LabHost, LabHost][] = lab.hosts.length === 2 ? [[a, b], [b, a]] : ring; // prettier-ignore
  const findings: { arrow: string; finding: Finding }[] = [];
  for (const [from, to] of directions) {
    const arrow = `${String(from.place.number)}→${String(to.place.number)}`;
    findings.push({ arrow, finding: await work(from, to) });
  }
  return combine(findings.map(({ arrow, finding }) => ({ ok: finding.ok, detail: `${arrow} ${finding.detail}` })));
}

/** All must hold. Many findings that hold are shown as the first and a count, failures always. */
export function combine(findings: readonly Finding[]): Finding {
  const bad = findings.filter((finding) => !finding.ok);
  if (bad.length > 0) return { ok: false, detail: bad.map((finding) => finding.detail).join('; ') };
  const shown = findings.slice(0, 2).map((finding) => finding.detail);
  if (findings.length > 2) shown.push(`and ${String(findings.length - 2)} more`);
  return { ok: true, detail: shown.join('; ') };
}

function complete(result: UdpEchoResult, what: string): Finding {
  const ok = result.received === result.sent && result.corrupt === 0;
  const corrupt = result.corrupt === 0 ? '' : `, ${String(result.corrupt)} corrupt`;
  return { ok, detail: `${String(result.received)}/${String(result.sent)} ${what}${corrupt}` };
}

/** A pod's address of one family, as text. */
function addressOf(pod: PodPlace, over: Family): string {
  const found: Address | undefined = pod.addresses.find(({ family }) => family === over);
  if (found === undefined) throw new Error(`the pod in ${pod.netns} has no IPv${String(over)} address`);
  return found.toString();
}

async function hasPing(): Promise<boolean> {
  return await run('sh', ['-c', 'command -v ping']).then(
    () => true,
    () => false,
  );
}

const ping: Check = {
  name: 'ping',
  run: async (lab, over) => {
    if (!(await hasPing())) {
      const echoes = await bothWays(lab, async (from, to) => {
        const args = { host: addressOf(to.pod, over), sizes: Array.from({ length: 5 }, () => 56), intervalMs: 20 };
        return complete(await from.endpoint.call('udpEcho', { ...args, timeoutMs: TIMEOUT_MS }), 'echoes');
      });
      return { ok: echoes.ok, detail: `${echoes.detail} (over UDP: there is no ping command)` };
    }
    return await bothWays(lab, async (from, to) => {
      // ping exits with 1 when something was lost; its summary says what. Without a deadline (-w) it sends five and no
      // more: with one it goes on until five have been answered, and what is under way at the end counts as lost.
      const command = `ping -n -q -c 5 -i 0.02 -W 2 ${addressOf(to.pod, over)} || :`;
      const output = await run('ip', ['netns', 'exec', from.pod.netns, 'sh', '-c', command], { timeoutMs: 15_000 });
      const lost = /(\d+(?:\.\d+)?)% packet loss/.exec(output)?.[1] ?? '100';
      const average = /= [\d.]+\/([\d.]+)\//.exec(output)?.[1] ?? '?';
      return { ok: Number(lost) === 0, detail: lost === '100' ? 'no answer' : `${lost} % lost, ${average} ms` };
    });
  },
};

const tcp: Check = {
  name: 'tcp',
  run: async (lab, over) =>
    await bothWays(lab, async (from, to) => {
      const bytes = 4 << 20;
      const args = { host: addressOf(to.pod, over), bytes, timeoutMs: 2 * TIMEOUT_MS };
      const { intactBytes, milliseconds } = await from.endpoint.call('tcpEcho', args);
      const detail = `${String(intactBytes)} of ${String(bytes)} bytes there and back, ${milliseconds.toFixed(0)} ms`;
      return { ok: intactBytes === bytes, detail };
    }),
};

/** Echoes datagrams of the given payload sizes; all must come back intact. */
async function echo(
  from: LabHost,
  to: LabHost,
  over: Family,
  sizes: readonly number[],
  intervalMs: number,
): Promise<UdpEchoResult> {
  const args = { host: addressOf(to.pod, over), sizes, intervalMs, timeoutMs: TIMEOUT_MS };
  return await from.endpoint.call('udpEcho', args);
}

const udp: Check = {
  name: 'udp',
  run: async (lab, over) =>
    await bothWays(lab, async (from, to) => {
      const sizes = Array.from({ length: 200 }, (_, i) => 4 + ((i * 37) % 1200));
      return complete(await echo(from, to, over, sizes, 1), 'datagrams back');
    }),
};

const mtu: Check = {
  name: 'mtu',
  run: async (lab, over) =>
    await bothWays(lab, async (from, to) => {
      // A UDP socket sets DF on what fits its route's MTU, so these cross in one piece or not at all.
      const size = from.node.mtu - IP_UDP_BYTES[over];
      const result = await echo(from, to, over, [size, size - 1, size, size, size], 2);
      return complete(result, `packets of ${String(from.node.mtu)} bytes back`);
    }),
};

const fragments: Check = {
  name: 'fragments',
  run: async (lab, over) =>
    await bothWays(lab, async (from, to) => {
      const fits = from.node.mtu - IP_UDP_BYTES[over];
      const sizes = [fits + 1, 2 * fits, 5000, 16_384, 40_000, LARGEST_DATAGRAM[over]];
      return complete(
        await echo(from, to, over, sizes, 5),
        `datagrams of ${String(fits + 1)} to ${String(LARGEST_DATAGRAM[over])} bytes back`,
      );
    }),
};

const beyondMtu: Check = {
  name: 'beyond-mtu',
  run: async (lab, over) => {
    // Pods that do not know the overlay's MTU, as behind a CNI plugin with a fixed one: their full-size packets carry
    // DF, the host must refuse them with the right size, and TCP must get through with smaller ones.
    const [a, b] = lab.pair;
    const larger = a.node.mtu + 28;
    await Promise.all([lab.setPodMtu(a, larger), lab.setPodMtu(b, larger)]);
    try {
      const bytes = 1 << 20;
      const args = { host: addressOf(b.pod, over), bytes, timeoutMs: 2 * TIMEOUT_MS };
      const { intactBytes } = await a.endpoint.call('tcpEcho', args);
      const learnt = await pathMtu(a, b, over);
      const detail = `pod MTU ${String(larger)}: TCP ${String(intactBytes)} of ${String(bytes)} bytes, path MTU learnt ${String(learnt ?? 'none')}`;
      // A dual-stack overlay tells the pods what its narrower family takes.
      const isLearnt = learnt !== undefined && learnt >= a.node.mtu && learnt < larger;
      return { ok: intactBytes === bytes && isLearnt, detail };
    } finally {
      await Promise.all([lab.setPodMtu(a, a.node.mtu), lab.setPodMtu(b, b.node.mtu)]);
      for (const host of [a, b]) await run('ip', ['-n', host.pod.netns, 'route', 'flush', 'cache']);
    }
  },
};

/** The path MTU that a pod's kernel holds for another pod. */
async function pathMtu(from: LabHost, to: LabHost, over: Family): Promise<number | undefined> {
  const route = await run('ip', ['-n', from.pod.netns, 'route', 'get', addressOf(to.pod, over)]);
  const found = /\bmtu (\d+)/.exec(route)?.[1];
  return found === undefined ? undefined : Number(found);
}

const sourceAddress: Check = {
  name: 'source-address',
  run: async (lab, over) =>
    await bothWays(lab, async (from, to) => {
      const own = addressOf(from.pod, over);
      const seen = await from.endpoint.call('who', { host: addressOf(to.pod, over), timeoutMs: TIMEOUT_MS });
      const ok = seen.tcp === own && seen.udp === own;
      return { ok, detail: ok ? `${own} seen as itself` : `${own} seen as ${seen.tcp} (TCP), ${seen.udp} (UDP)` };
    }),
};

const nodeToPod: Check = {
  name: 'node-to-pod',
  run: async (lab, over) => {
    const [a, b] = lab.pair;
    return await lab.onHost(a, async (endpoint) => {
      const host = addressOf(b.pod, over);
      const bytes = 256 * 1024;
      const seen = await endpoint.call('who', { host, timeoutMs: TIMEOUT_MS });
      const { intactBytes } = await endpoint.call('tcpEcho', { host, bytes, timeoutMs: TIMEOUT_MS });
      const detail = `host 1 → ${host}: ${String(intactBytes)} of ${String(bytes)} bytes, seen as ${seen.tcp}`;
      return { ok: intactBytes === bytes, detail };
    });
  },
};

const unreachable: Check = {
  name: 'unreachable',
  provokes: { dropNoRoute: 10 },
  run: async (lab, over) => {
    const [a] = lab.pair;
    const nowhere = NETWORKS[over].last.offset(-5n).toString();
    const { outcome, milliseconds } = await a.endpoint.call('connect', { host: nowhere, timeoutMs: 2000 });
    const ok = isUnreachable(lab, outcome);
    return { ok, detail: `${nowhere} (no lease): ${outcome} after ${milliseconds.toFixed(0)} ms` };
  },
};

/** What a pod should get that connects to nobody. */
export function isUnreachable({ traits }: Lab, outcome: string): boolean {
  if (!traits.answersUnreachable) return outcome !== 'connected';
  return outcome === 'ENETUNREACH' || outcome === 'EHOSTUNREACH';
}

/** The order is the order of the table; a pod that cannot be pinged explains the rest. */
export const CHECKS: readonly Check[] = [
  ping,
  tcp,
  udp,
  mtu,
  beyondMtu,
  fragments,
  sourceAddress,
  nodeToPod,
  unreachable,
];

/** Of these a dual-stack overlay gets a second round, over its second family. */
export const SECOND_FAMILY_CHECKS: readonly Check[] = [ping, tcp, udp, mtu, fragments, sourceAddress, nodeToPod];
