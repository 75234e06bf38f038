// @ts-check
/**
 * The figures that the engine, lease control and the backends have to reach, as data. A target compares a metric of a
 * contender with a limit: the metric itself, or its ratio to another contender measured in the same rounds.
 */
import { PACES } from '../latency/rtt.mjs';
import { ratio, spread } from './stats.mjs';

/**
 * @typedef {object} Target
 * @property {string} title
 * @property {string} metric
 * @property {string} contender
 * @property {string} [against] ratio to this contender; absent = the metric itself
 * @property {'>=' | '<=' | '<'} relation
 * @property {Readonly<Partial<Record<'veth' | 'nic' | 'any', number>>>} limits by underlay; `any` = whichever it was measured on
 *
 * @typedef {object} Verdict
 * @property {string} title
 * @property {string} underlay
 * @property {string} relation
 * @property {number} limit
 * @property {import('./stats.mjs').Spread | undefined} measured
 * @property {'reached' | 'missed' | 'not measured'} verdict of the median
 * @property {boolean} spansLimit the range of the rounds lies on both sides of the limit: within the noise
 * @property {boolean} senderLimited the sender had no more to offer in most rounds: a higher figure cannot show here
 */

/**
 * @param {string} title
 * @param {string} metric
 * @param {Target['relation']} relation
 * @param {number} veth
 * @param {number} nic
 * @param {string} [against]
 * @returns {Target}
 */
function ratioTarget(title, metric, relation, veth, nic, against = 'vxlan') {
  return backendTarget(title, metric, 'podwire', against, veth, nic, relation);
}

/**
 * @param {string} title
 * @param {string} metric
 * @param {string} contender
 * @param {Target['relation']} relation
 * @param {number} limit
 * @returns {Target}
 */
function absoluteTarget(title, metric, contender, relation, limit) {
  return { title, metric, contender, relation, limits: { any: limit } };
}

/**
 * A figure of a backend, at least so much of another contender's.
 * @param {string} title
 * @param {string} metric
 * @param {string} contender
 * @param {string} against
 * @param {number} veth
 * @param {number} nic
 * @param {Target['relation']} [relation]
 * @returns {Target}
 */
function backendTarget(title, metric, contender, against, veth, nic, relation = '>=') {
  return { title, metric, contender, against, relation, limits: { veth, nic } };
}

/**
 * What the kernel carries is as fast as the same device set up by hand: within 5 %.
 * @param {string} contender
 * @param {string} against
 */
function byHandTargets(contender, against) {
  return [1, 4].map((streams) =>
    backendTarget(`${contender}, TCP x${streams}, to ${against}`, `tcp${streams}.gbps`, contender, against, 0.95, 0.95),
  );
}

/**
 * IPv6 inside and outside is within 10 % of IPv4.
 * @param {string} contender
 * @param {string} against
 */
function ipv6Targets(contender, against) {
  return ['tcp1.gbps', 'tcp4.gbps', 'udp64.lossfree'].map((metric) =>
    backendTarget(`${contender}, ${metric}, to ${against}`, metric, contender, against, 0.9, 0.9),
  );
}

/** @type {readonly Target[]} */
export const TARGETS = [
  ratioTarget('TCP, 1 stream, to vxlan', 'tcp1.gbps', '>=', 0.75, 1.15),
  ratioTarget('TCP, 4 streams, to vxlan', 'tcp4.gbps', '>=', 0.42, 1.05),
  ratioTarget('processor time per GB, TCP 1 stream, to vxlan', 'tcp1.cpuPerGB', '<=', 1.7, 1.1),
  ratioTarget('UDP 64 B, < 1 % loss, to vxlan', 'udp64.lossfree', '>=', 2.6, 2.5),
  ratioTarget('UDP 64 B, flood, to vxlan', 'udp64.flood', '>=', 2.3, 2.3),
  ratioTarget('UDP 1392 B, < 1 % loss, to vxlan', 'udp1392.lossfree', '>=', 2.3, 2.2),
  ratioTarget('ping-pong p50, to vxlan', 'ping.p50', '<=', 0.75, 0.8),
  ratioTarget('ping-pong p99, to vxlan', 'ping.p99', '<=', 1, 1),
  ratioTarget('TCP, 1 stream, to every offload off', 'tcp1.gbps', '>=', 8, 6, 'podwire-plain'),
  ...PACES.map((rate) =>
    ratioTarget(
      `paced ${rate}/s p50, to no spin`,
      `paced${rate}.p50`,
      '<=',
      rate === 2000 ? 1 : 1.05,
      rate === 2000 ? 1 : 1.05,
      'podwire-nospin',
    ),
  ),
  absoluteTarget('idle agent, % of a core', 'idle.cpu', 'podwire', '<', 1),
  absoluteTarget('idle agent, MB', 'idle.memory', 'podwire', '<', 100e6 / 2 ** 20),
  absoluteTarget('garbage collections in workers, 10 s of load', 'gc.workers', 'podwire', '<=', 0),
  absoluteTarget('look-up IPv4, 100,000 prefixes, ns', 'lookup4.random', 'micro', '<=', 15),
  absoluteTarget('look-up IPv6, 100,000 prefixes, ns', 'lookup6.random', 'micro', '<=', 40),
  absoluteTarget('forwarder, 100,000 prefixes to one', 'forwarder.ratio', 'micro', '<=', 1.1),
  absoluteTarget('FIB updates per second', 'update.rate', 'micro', '>=', 50_000),
  absoluteTarget('route updates per second under traffic', 'updates.rate', 'podwire', '>=', 50_000),
  absoluteTarget('packets lost meanwhile', 'updates.lost', 'podwire', '<=', 0),
  backendTarget('user-space vxlan, TCP x1, to vxlan', 'tcp1.gbps', 'podwire-vxlan', 'vxlan', 0.72, 1.1),
  backendTarget('user-space vxlan, TCP x4, to vxlan', 'tcp4.gbps', 'podwire-vxlan', 'vxlan', 0.4, 1),
  backendTarget('kernel vxlan to podwire, TCP x1, to vxlan', 'tcp1.gbps', 'vxlan-to-podwire', 'vxlan', 0.58, 0.85),
  backendTarget('podwire to kernel vxlan, TCP x1, to vxlan', 'tcp1.gbps', 'podwire-to-vxlan', 'vxlan', 0.33, 0.75),
  backendTarget('user-space vxlan, UDP 64 B, to vxlan', 'udp64.lossfree', 'podwire-vxlan', 'vxlan', 2.4, 2.3),
  backendTarget('user-space vxlan, ping-pong p50, to vxlan', 'ping.p50', 'podwire-vxlan', 'vxlan', 0.8, 0.8, '<='),
  backendTarget('user-space vxlan, ping-pong p99, to vxlan', 'ping.p99', 'podwire-vxlan', 'vxlan', 1, 1, '<='),
  ...byHandTargets('podwire-vxlan-kernel', 'vxlan'),
  ...byHandTargets('podwire-host-gw', 'direct'),
  ...ipv6Targets('podwire-ipv6', 'podwire'),
  ...ipv6Targets('podwire-vxlan-ipv6', 'podwire-vxlan'),
  absoluteTarget('cold start to subnet.env, ms', 'control.start', 'podwire', '<=', 400),
  absoluteTarget('... of the first start ever, ms', 'control.first', 'podwire', '<=', 400),
  absoluteTarget('join forwarded, p99, ms', 'control.join.p99', 'podwire', '<=', 50),
  absoluteTarget('leave forwarded, p99, ms', 'control.leave.p99', 'podwire', '<=', 50),
  absoluteTarget('join seen by 20 peers, p99, ms', 'control.seen.p99', 'podwire', '<=', 50),
  absoluteTarget('leave seen by 20 peers, p99, ms', 'control.gone.p99', 'podwire', '<=', 50),
  absoluteTarget('5,000 leases: first snapshot, ms', 'control.snapshot', 'podwire', '<=', 1500),
  absoluteTarget('5,000 leases: memory, MB', 'control.memory', 'podwire', '<=', 150e6 / 2 ** 20),
  absoluteTarget('changes followed per second', 'control.churn', 'podwire', '>=', 990),
  absoluteTarget('packets lost during the changes', 'control.churnLost', 'podwire', '<=', 0),
];

/**
 * @param {Target['relation']} relation
 * @param {number} value
 * @param {number} limit
 */
function holds(relation, value, limit) {
  if (relation === '>=') return value >= limit;
  return relation === '<=' ? value <= limit : value < limit;
}

/**
 * @param {readonly import('./stats.mjs').Sample[]} samples
 * @param {string} contender
 * @param {string} metric
 * @param {string} underlay
 */
function spreadOf(samples, contender, metric, underlay) {
  const values = samples
    .filter((sample) => sample.contender === contender && (underlay === 'any' || sample.underlay === underlay))
    .map((sample) => sample.values[metric])
    .filter((value) => value !== undefined);
  return values.length > 0 ? spread(values) : undefined;
}

/**
 * @param {readonly import('./stats.mjs').Sample[]} samples
 * @param {Target} target
 * @param {string} underlay
 */
function measured(samples, { metric, contender, against }, underlay) {
  if (against !== undefined) return ratio(samples, { underlay, metric, contender, baseline: against });
  return spreadOf(samples, contender, metric, underlay);
}

/**
 * @param {readonly import('./stats.mjs').Sample[]} samples
 * @param {Target} target
 * @param {string} underlay
 */
function limitedBySender(samples, { metric, contender }, underlay) {
  const flag = metric.replace(/\.lossfree$/, '.senderLimited');
  return flag !== metric && (spreadOf(samples, contender, flag, underlay)?.median ?? 0) > 0.5;
}

/**
 * @param {readonly import('./stats.mjs').Sample[]} samples
 * @param {readonly Target[]} [targets]
 * @returns {Verdict[]}
 */
export function judge(samples, targets = TARGETS) {
  return targets.flatMap((target) =>
    Object.entries(target.limits).map(([underlay, limit]) => {
      const found = measured(samples, target, underlay);
      const { title, relation } = target;
      if (found === undefined) {
        return {
          title,
          underlay,
          relation,
          limit,
          measured: undefined,
          verdict: /** @type {const} */ ('not measured'),
          spansLimit: false,
          senderLimited: false,
        };
      }
      const reached = holds(relation, found.median, limit);
      const spansLimit = holds(relation, found.min, limit) !== holds(relation, found.max, limit);
      const senderLimited = limitedBySender(samples, target, underlay);
      const verdict = reached ? 'reached' : 'missed';
      return { title, underlay, relation, limit, measured: found, verdict, spansLimit, senderLimited };
    }),
  );
}
