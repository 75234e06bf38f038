// @ts-check
/** Every figure that the benchmark knows: its words and unit, in the order of the report. */
import { PACES } from '../latency/rtt.mjs';

/**
 * @typedef {object} Metric
 * @property {string} id key in a sample's values
 * @property {string} title
 * @property {string} unit
 * @property {'higher' | 'lower'} better
 * @property {string} definition
 */

/**
 * @param {1 | 4} streams
 * @returns {Metric[]}
 */
function tcp(streams) {
  const plural = streams === 1 ? '1 stream' : `${streams} streams`;
  return [
    {
      id: `tcp${streams}.gbps`,
      title: `TCP, ${plural}`,
      unit: 'Gbit/s',
      better: 'higher',
      definition: 'iperf3 -C cubic, received, the first second left out',
    },
    {
      id: `tcp${streams}.cpuPerGB`,
      title: `TCP, ${plural}: processor time, machine`,
      unit: 's/GB',
      better: 'lower',
      definition: 'busy time of all processors (/proc/stat, tick-sampled) per 10^9 bytes, over the whole transfer',
    },
    {
      id: `tcp${streams}.tunnelCpuPerGB`,
      title: `TCP, ${plural}: processor time, tunnel`,
      unit: 's/GB',
      better: 'lower',
      definition: 'user and system time of the tunnel processes of both hosts per 10^9 bytes',
    },
  ];
}

/**
 * @param {64 | 1392} size
 * @param {string} unit
 * @returns {Metric[]}
 */
function udp(size, unit) {
  return [
    {
      id: `udp${size}.lossfree`,
      title: `UDP ${size} B, highest rate with < 1 % loss`,
      unit,
      better: 'higher',
      definition: `one flow, ${size} bytes of UDP payload, paced sender, offered rate found by search`,
    },
    {
      id: `udp${size}.flood`,
      title: `UDP ${size} B, flood`,
      unit,
      better: 'higher',
      definition: `one flow, ${size} bytes of UDP payload, sendmmsg without pacing, what arrives`,
    },
  ];
}

/**
 * @param {string} id
 * @param {string} title
 * @param {string} definition
 * @returns {Metric}
 */
function rtt(id, title, definition) {
  return { id, title, unit: 'us', better: 'lower', definition };
}

const PING = '64 bytes of UDP payload, the next leaves when the answer is here, both ends block';
const PACED = '64 bytes of UDP payload at fixed times, spinning client, blocking echo';

/**
 * @param {string} name
 * @param {string} title
 * @param {string} definition
 * @returns {Metric[]}
 */
function control(name, title, definition) {
  return ['p50', 'p99'].map((share) => ({
    id: `control.${name}.${share}`,
    title: `${title}, ${share}`,
    unit: 'ms',
    better: 'lower',
    definition,
  }));
}

/** @type {readonly Metric[]} */
export const METRICS = [
  ...tcp(1),
  ...tcp(4),
  ...udp(64, 'kpps'),
  ...udp(1392, 'Gbit/s'),
  rtt('ping.p50', 'ping-pong RTT, p50', PING),
  rtt('ping.p99', 'ping-pong RTT, p99', PING),
  rtt('ping.p999', 'ping-pong RTT, p99.9', PING),
  ...PACES.flatMap((rate) => [
    rtt(`paced${rate}.p50`, `paced RTT at ${rate}/s, p50`, PACED),
    rtt(`paced${rate}.p99`, `paced RTT at ${rate}/s, p99`, PACED),
  ]),
  {
    id: 'memory.peak',
    title: 'memory of the tunnel process, peak',
    unit: 'MiB',
    better: 'lower',
    definition: 'VmHWM of the larger of the two processes at the end of its round',
  },
  {
    id: 'idle.cpu',
    title: 'idle agent: processor time',
    unit: '% of a core',
    better: 'lower',
    definition: 'user and system time of the busier agent, no traffic',
  },
  {
    id: 'idle.memory',
    title: 'idle agent: memory',
    unit: 'MiB',
    better: 'lower',
    definition: 'VmRSS of the larger agent, no traffic yet',
  },
  {
    id: 'gc.workers',
    title: 'garbage collections of the workers under load',
    unit: '',
    better: 'lower',
    definition: 'lines of --trace-gc of all threads but the main one, both agents, 1392 B flood',
  },
  {
    id: 'updates.rate',
    title: 'route updates under traffic, 100,000 routes',
    unit: '/s',
    better: 'higher',
    definition:
      'set and delete of the slower of two data planes, paced at 60,000 a second, 20,000 packets/s between the pods',
  },
  {
    id: 'updates.lost',
    title: 'packets lost during the route updates',
    unit: '',
    better: 'lower',
    definition: 'sent minus received, by sequence number',
  },
  {
    id: 'control.start',
    title: 'cold start to subnet.env',
    unit: 'ms',
    better: 'lower',
    definition: 'from the start of the process, with an etcd that answers and no lease of this host in it',
  },
  {
    id: 'control.first',
    title: 'the same without compiled code of an earlier start',
    unit: 'ms',
    better: 'lower',
    definition: "the very first start on a host, or after an upgrade: V8 compiles the program's bundle",
  },
  ...control('join', 'join to the first packet forwarded', 'a lease is written; one agent, a packet each millisecond'),
  ...control('leave', 'leave to the last packet forwarded', 'the lease is deleted'),
  ...control(
    'seen',
    'join seen, of 20 peers',
    'until each peer knows; lease keepers in one process, with the time of etcd',
  ),
  ...control('gone', 'leave seen, of 20 peers', 'the same for the lease being deleted'),
  {
    id: 'control.agents',
    title: 'real agent: lease in the store to packets through both, p50',
    unit: 'ms',
    better: 'lower',
    definition: 'the second of two agents starts; its device and routes come after its lease',
  },
  {
    id: 'control.snapshot',
    title: '5,000 leases: first snapshot applied',
    unit: 'ms',
    better: 'lower',
    definition: "from the agent's own lease to 5,001 routes in its table",
  },
  {
    id: 'control.snapshotStart',
    title: '5,000 leases: the same from the start of the process',
    unit: 'ms',
    better: 'lower',
    definition: 'from the start of the process',
  },
  {
    id: 'control.memory',
    title: '5,000 leases: memory of the agent, peak',
    unit: 'MiB',
    better: 'lower',
    definition: 'VmHWM after the churn',
  },
  {
    id: 'control.memoryIdle',
    title: '5,000 leases: memory of the agent before the churn',
    unit: 'MiB',
    better: 'lower',
    definition: 'VmRSS with all leases applied',
  },
  {
    id: 'control.churn',
    title: 'changes a second that were followed',
    unit: '/s',
    better: 'higher',
    definition: 'joins, leaves and moves among 5,000 leases, paced at 1,000 a second',
  },
  {
    id: 'control.churnLag',
    title: 'last of them to all of them followed',
    unit: 'ms',
    better: 'lower',
    definition: 'until the agent routes exactly the leases that are there, as its status says',
  },
  {
    id: 'control.churnLost',
    title: 'packets lost during the changes',
    unit: '',
    better: 'lower',
    definition: '1,000 a second to a host that does not change',
  },
  {
    id: 'lookup4.random',
    title: 'FIB look-up, IPv4, random of 100,000 prefixes',
    unit: 'ns',
    better: 'lower',
    definition: 'micro',
  },
  {
    id: 'lookup6.random',
    title: 'FIB look-up, IPv6, random of 100,000 prefixes',
    unit: 'ns',
    better: 'lower',
    definition: 'micro',
  },
  {
    id: 'update.rate',
    title: 'FIB updates at 100,000 prefixes, without traffic',
    unit: '/s',
    better: 'higher',
    definition: 'micro',
  },
  {
    id: 'forwarder.ratio',
    title: 'forwarder, random of 100,000 prefixes against one',
    unit: 'x',
    better: 'lower',
    definition: 'micro: time of an egress batch to random destinations divided by that to one prefix',
  },
];
