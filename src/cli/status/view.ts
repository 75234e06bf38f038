/** The status as a person reads it: a few lines about this host, then one table of its peers. */
import type { AgentStatus } from '../../agent/status.js';
import { dropsOf } from '../counters.js';
import { cut, formatBytes, formatCounterName, formatDuration, formatMicroseconds, formatRate } from '../format.js';
import { table, type Column } from '../table.js';
import { peerKey, type Rate, type Rates } from './rates.js';

export interface ViewOptions {
  readonly now: Date;
  /** Since the look before; undefined for a single look. */
  readonly rates?: Rates | undefined;
  /** In characters; default unlimited. */
  readonly width?: number;
  /** Most lines; peers that do not fit are counted. Default unlimited. */
  readonly height?: number;
}

/** A line, and whether it tells of something that is wrong. */
export interface Line {
  readonly text: string;
  readonly tone: 'plain' | 'bad' | 'head';
}

type Engine = NonNullable<AgentStatus['dataplane']>;
type Peer = Engine['peers'][number];
type Counted = Omit<Peer, 'address' | 'port' | 'routes'>;

export function viewOf(status: AgentStatus, options: ViewOptions): Line[] {
  const { now, rates, width = Number.POSITIVE_INFINITY, height = Number.POSITIVE_INFINITY } = options;
  const head = [...hostLines(status, now, rates), { text: '', tone: 'plain' as const }];
  const rows = peerRows(status, rates);
  const room = Math.max(1, height - head.length - 1);
  const shown = rows.length <= room ? rows : rows.slice(0, room - 1);
  const lines: Line[] = head.map(({ text, tone }) => ({ text: cut(text, width), tone }));
  if (rows.length === 0) return [...lines, { text: 'no other host has a lease', tone: 'plain' }];
  const [titles = '', ...texts] = table(columns(rates !== undefined), shown, width);
  lines.push({ text: titles, tone: 'head' });
  texts.forEach((text, i) => lines.push({ text, tone: isBad(shown[i]) ? 'bad' : 'plain' }));
  const hidden = rows.length - shown.length;
  if (hidden > 0) lines.push({ text: cut(`… and ${hidden} more`, width), tone: 'plain' });
  return lines;
}

/** Label and text. */
function line(label: string, text: string, isBad = false): Line {
  return { text: `${label.padEnd(10)} ${text}`, tone: isBad ? 'bad' : 'plain' };
}

function hostLines(status: AgentStatus, now: Date, rates: Rates | undefined): Line[] {
  const { lease, device, store, dataplane, firewall, subnetFile, host } = status;
  const up = formatDuration(now.getTime() - Date.parse(status.startedAt));
  const both = (first: string, second: string | undefined): string =>
    second === undefined ? first : `${first} ${second}`;
  const underlay = status.interface;
  return [
    { text: `podwire ${status.version}  pid ${status.pid}  up ${up}`, tone: 'head' },
    line('network', `${both(status.network, status.network6)}  backend ${status.backend}`),
    line(
      'lease',
      `${both(lease.subnet, lease.subnet6)}  public ${lease.publicIp}  ${leaseText(lease, now)}`,
      isLost(lease, now),
    ),
    ...(lease.conflict === undefined ? [] : [line('CONFLICT', lease.conflict, true)]),
    line(
      'device',
      `${device.name}  mtu ${device.mtu}  over ${underlay.name} ${underlay.address} mtu ${underlay.mtu} (${underlay.why})`,
    ),
    line('store', storeText(store, now), !store.ok),
    ...(subnetFile === undefined || subnetFile.written ? [] : [line('file', `${subnetFile.path} NOT WRITTEN`, true)]),
    ...(firewall === undefined ? [] : [line('firewall', firewallText(firewall), firewall.state === 'failing')]),
    ...(host.eventsHeard ? [] : [line('host', 'changes of the host are noticed late: no events are heard', true)]),
    ...repairLines(host),
    ...host.problems.map((problem) => line('PROBLEM', problem, true)),
    ...(dataplane === undefined ? [line('packets', 'carried by the kernel')] : engineLines(dataplane, rates)),
  ];
}

/** What had to be put right since the start. */
function repairLines({ driftRepaired, reopened }: AgentStatus['host']): Line[] {
  const repairs = Object.entries(driftRepaired).filter(([, count]) => count > 0);
  const parts = repairs.map(([kind, count]) => `${count} ${kind}`);
  const text = [
    ...(parts.length === 0 ? [] : [`repaired ${parts.join(', ')}`]),
    ...(reopened === 0 ? [] : [`data plane opened again ${reopened} times`]),
  ].join('  ');
  return text === '' ? [] : [line('host', text)];
}

function isLost(lease: AgentStatus['lease'], now: Date): boolean {
  return !lease.held || (lease.expiresAt !== undefined && Date.parse(lease.expiresAt) <= now.getTime());
}

function leaseText(lease: AgentStatus['lease'], now: Date): string {
  const parts: string[] = [];
  if (!lease.held) parts.push('LOST, acquiring again');
  else if (lease.expiresAt === undefined) parts.push('reserved');
  else {
    const left = Date.parse(lease.expiresAt) - now.getTime();
    parts.push(left > 0 ? `expires in ${formatDuration(left)}` : `EXPIRED ${formatDuration(-left)} ago`);
  }
  if (lease.renewFailures > 0) parts.push(`${lease.renewFailures} renewals failed`);
  if (lease.losses > 0) parts.push(`lost ${lease.losses} times`);
  return parts.join(', ');
}

function storeText({ description, ok, lastError, tableOf }: AgentStatus['store'], now: Date): string {
  if (ok) return `${description}  ok`;
  const age =
    tableOf === undefined
      ? ''
      : `; forwarding by the lease table of ${formatDuration(now.getTime() - Date.parse(tableOf))} ago`;
  return `${description}  FAILING: ${lastError ?? 'unknown'}${age}`;
}

function firewallText(firewall: NonNullable<AgentStatus['firewall']>): string {
  const features = [firewall.masquerade ? 'masquerade' : '', firewall.forward ? 'forward' : ''].filter(Boolean);
  return [
    firewall.manager,
    features.length === 0 ? 'no rules' : features.join(' '),
    firewall.state,
    ...(firewall.watch === 'periodic' ? [`checked every ${formatDuration(firewall.resyncMs)}`] : []),
    ...(firewall.admittedIn.length === 0 ? [] : [`accepts in ${firewall.admittedIn.join(', ')}`]),
    ...(firewall.repairs === 0 ? [] : [`repaired ${firewall.repairs} times`]),
    ...(firewall.lastError === undefined ? [] : [`FAILING: ${firewall.lastError}`]),
  ].join('  ');
}

function engineLines({ workers, totals }: Engine, rates: Rates | undefined): Line[] {
  const restarts = workers.reduce((sum, worker) => sum + worker.restarts, 0);
  const states = new Map<string, number>();
  for (const { state } of workers) states.set(state, (states.get(state) ?? 0) + 1);
  const workerText = Array.from(states, ([state, count]) => `${count} ${state}`).join(', ');
  const side = (name: 'egress' | 'ingress'): string => {
    const sum = `${totals[`${name}Packets`]} (${formatBytes(totals[`${name}Bytes`])})`;
    if (rates === undefined) return sum;
    const { total } = rates;
    return `${sum}, ${formatRate(total[`${name}Bits`], 'bit/s')}, ${formatRate(total[`${name}Packets`], 'packets/s')}`;
  };
  const drops = Object.entries(dropsOf(totals)).map(([name, count]) => {
    const now = rates?.drops[name];
    return `${formatCounterName(name)} ${count}${now === undefined ? '' : ` (+${formatRate(now, '/s').replace(' /s', '/s')})`}`;
  });
  return [
    line('workers', `${workerText}${restarts > 0 ? `, restarted ${restarts} times` : ''}`, states.has('restarting')),
    line('packets', `out ${side('egress')}  in ${side('ingress')}`),
    line('drops', drops.length === 0 ? 'none' : drops.join(', ')),
  ];
}

interface Row {
  readonly lease: AgentStatus['leases'][number];
  /** Undefined where nothing is counted: not routed, or carried by the kernel. */
  readonly peer: Counted | undefined;
  readonly rate: Rate | undefined;
  /** Another lease of the host that the row above is about: its counts are there. */
  readonly isSame: boolean;
}

const isBad = (row: Row | undefined): boolean => row !== undefined && row.lease.state !== 'routed';

/** What is wrong first; with rates the busiest next, else in the order of the store. */
function peerRows({ leases, dataplane }: AgentStatus, rates: Rates | undefined): Row[] {
  const peers = new Map<string, Peer[]>();
  for (const peer of dataplane?.peers ?? []) peers.set(peer.address, [...(peers.get(peer.address) ?? []), peer]);
  const seen = new Set<string>();
  const rows = leases.map((lease): Row => {
    const addresses = [lease.publicIp, ...(lease.publicIpv6 === undefined ? [] : [lease.publicIpv6])];
    const found = addresses.flatMap((address) => peers.get(address) ?? []);
    const isSame = addresses.some((address) => seen.has(address));
    if (found.length > 0) for (const address of addresses) seen.add(address);
    const given = found.flatMap((peer) => rates?.peers.get(peerKey(peer)) ?? []);
    return { lease, peer: together(found), rate: given.length === 0 ? undefined : ratesTogether(given), isSame };
  });
  const bits = ({ rate }: Row): number => (rate === undefined ? 0 : rate.egressBits + rate.ingressBits);
  return rows
    .map((row, at) => ({ row, at }))
    .sort((a, b) => Number(isBad(b.row)) - Number(isBad(a.row)) || bits(b.row) - bits(a.row) || a.at - b.at)
    .map(({ row }) => row);
}

/** A host with several next hops, or an address of each family, is one row. */
function together(peers: readonly Peer[]): Counted | undefined {
  const [first] = peers;
  if (first === undefined) return undefined;
  const heard = peers.flatMap(({ lastHeardMs }) => lastHeardMs ?? []);
  const probe = peers.find((peer) => peer.probe !== undefined)?.probe;
  const sum = (pick: (peer: Peer) => number): number => peers.reduce((total, peer) => total + pick(peer), 0);
  return {
    txPackets: sum(({ txPackets }) => txPackets),
    txBytes: sum(({ txBytes }) => txBytes),
    txDrops: sum(({ txDrops }) => txDrops),
    // Next hops with one address share what is received.
    ...receivedBy(peers),
    pathMtu: Math.min(...peers.map(({ pathMtu }) => pathMtu)),
    ...(heard.length === 0 ? {} : { lastHeardMs: Math.min(...heard) }),
    ...(probe === undefined ? {} : { probe }),
  };
}

function receivedBy(peers: readonly Peer[]): Pick<Peer, 'rxPackets' | 'rxBytes' | 'rxDrops'> {
  const received = { rxPackets: 0, rxBytes: 0, rxDrops: 0 };
  for (const { rxPackets, rxBytes, rxDrops } of new Map(peers.map((peer) => [peer.address, peer])).values()) {
    received.rxPackets += rxPackets;
    received.rxBytes += rxBytes;
    received.rxDrops += rxDrops;
  }
  return received;
}

function ratesTogether(rates: readonly Rate[]): Rate {
  const sum = (pick: (rate: Rate) => number): number => rates.reduce((total, rate) => total + pick(rate), 0);
  return {
    egressBits: sum(({ egressBits }) => egressBits),
    ingressBits: sum(({ ingressBits }) => ingressBits),
    egressPackets: sum(({ egressPackets }) => egressPackets),
    ingressPackets: sum(({ ingressPackets }) => ingressPackets),
  };
}

/** A cell that only rows with counts of their own have. */
function counted(text: (peer: Counted, row: Row) => string): (row: Row) => string {
  return (row) => (row.peer === undefined || row.isSame ? '' : text(row.peer, row));
}

function columns(withRates: boolean): readonly Column<Row>[] {
  const right = { align: 'right' } as const;
  const rate = (pick: (rate: Rate) => number) =>
    counted((_, row) => (row.rate === undefined ? '' : formatRate(pick(row.rate), 'bit/s')));
  const probe = ({ lease, peer, isSame }: Row) => (isSame ? undefined : (peer?.probe ?? lease.probe));
  return [
    { title: 'PEER', text: ({ lease }) => lease.publicIp },
    { title: 'SUBNET', text: ({ lease }) => lease.subnet },
    { title: 'SUBNET6', text: ({ lease }) => lease.subnet6 ?? '', giveWay: 6 },
    { title: 'OUT', text: counted((peer) => String(peer.txPackets)), giveWay: 9, ...right },
    { title: 'BYTES', text: counted((peer) => formatBytes(peer.txBytes)), giveWay: withRates ? 8 : 3, ...right },
    ...(withRates ? [{ title: 'RATE', text: rate(({ egressBits }) => egressBits), giveWay: 3, ...right }] : []),
    { title: 'IN', text: counted((peer) => String(peer.rxPackets)), giveWay: 9, ...right },
    { title: 'BYTES', text: counted((peer) => formatBytes(peer.rxBytes)), giveWay: withRates ? 8 : 3, ...right },
    ...(withRates ? [{ title: 'RATE', text: rate(({ ingressBits }) => ingressBits), giveWay: 3, ...right }] : []),
    { title: 'DROPS', text: counted((peer) => dropText(peer)), giveWay: 5, ...right },
    { title: 'HEARD', text: heardText, giveWay: 4, ...right },
    {
      title: 'RTT',
      text: (row) => {
        const found = probe(row);
        return found?.state === 'unanswered'
          ? 'no answer'
          : found?.rttUs === undefined
            ? ''
            : formatMicroseconds(found.rttUs);
      },
      giveWay: 2,
      ...right,
    },
    {
      title: 'LOSS',
      text: (row) => {
        const found = probe(row);
        if (found === undefined) return '';
        return found.state === 'no-probe'
          ? 'no probe'
          : `${(found.lossPermille / 10).toFixed(found.lossPermille % 10 === 0 ? 0 : 1)} %`;
      },
      giveWay: 7,
      ...right,
    },
    {
      title: 'PATH MTU',
      text: counted(({ pathMtu }) => (pathMtu === 0 ? '' : String(pathMtu))),
      giveWay: 10,
      ...right,
    },
    {
      title: 'STATE',
      text: ({ lease }) => (lease.reason === undefined ? lease.state : `${lease.state}: ${lease.reason}`),
    },
  ];
}

/** Out and in; one number where it is one. */
function dropText({ txDrops, rxDrops }: Counted): string {
  return txDrops + rxDrops === 0 ? '0' : `${txDrops} out ${rxDrops} in`;
}

function heardText({ lease, peer, isSame }: Row): string {
  if (isSame) return '';
  const ms = peer?.lastHeardMs ?? lease.lastHeardMs;
  if (ms !== undefined) return ms < 1000 ? 'now' : `${formatDuration(ms)} ago`;
  // It answers probes, but no pod of it has sent anything.
  if ((peer?.probe ?? lease.probe)?.state === 'ok') return 'idle';
  return peer === undefined ? '' : 'never';
}
