// @ts-check
/**
 * TCP from pod to pod with iperf3, congestion control cubic (the machine's default may be another one).
 *
 * Throughput is what the receiver got after the first second. Processor time per GB (10^9 bytes) is taken over the whole
 * transfer, the first second and its bytes included, so that time and bytes are of the same span: of the whole machine, and
 * of the tunnel's processes.
 */
import { readFileSync } from 'node:fs';
import { machineCpu, machineCpuBetween, processesCpu } from '../lib/meter.mjs';
import { BenchError, run } from '../lib/process.mjs';

const PORT = 5201;
const LISTEN = '0A';

/**
 * True when the process listens on the port; looks at it from inside its namespace.
 * @param {number} pid
 */
function listens(pid) {
  const port = PORT.toString(16).toUpperCase().padStart(4, '0');
  return ['tcp', 'tcp6'].some((name) => {
    try {
      const table = readFileSync(`/proc/${pid}/net/${name}`, 'utf8');
      return table.split('\n').some((line) => {
        const [, local = '', , state] = line.trim().split(/\s+/);
        return state === LISTEN && local.endsWith(`:${port}`);
      });
    } catch {
      return false;
    }
  });
}

/**
 * @param {import('../lib/bed.mjs').Bed} bed
 * @param {number} streams
 * @param {{ seconds: number, omitSeconds: number }} durations whole seconds
 * @returns {Promise<{ values: Record<string, number>, raw: object }>}
 */
export async function measureTcp(bed, streams, { seconds, omitSeconds }) {
  const address = bed.server.podAddress;
  const client = ['iperf3', '-c', address, '-p', `${PORT}`, '-C', 'cubic', '-J', '-P', `${streams}`];
  client.push('-t', `${seconds}`, '-O', `${omitSeconds}`);
  const { value } = await bed.withServer(
    'iperf3 server',
    ['iperf3', '-s', '-1', '-B', address, '-p', `${PORT}`],
    (daemon) => listens(daemon.pid),
    async () => {
      const tunnelBefore = processesCpu(bed.tunnelPids);
      const before = machineCpu();
      const timeoutMs = (seconds + omitSeconds + 10) * 1000;
      const { stdout } = await run(client, {
        namespace: bed.client.podNetns,
        timeoutMs,
        signal: bed.signal,
        allowFailure: true,
      });
      const machine = machineCpuBetween(before, machineCpu());
      return { report: parseReport(stdout), machine, tunnelSeconds: processesCpu(bed.tunnelPids) - tunnelBefore };
    },
  );
  const { report, machine, tunnelSeconds } = value;
  const gigabytes = sum(report.intervals.map((interval) => interval.sum.bytes)) / 1e9;
  const gbps = report.end.sum_received.bits_per_second / 1e9;
  if (!(gbps > 0 && gigabytes > 0)) throw new BenchError(`iperf3 moved nothing with ${streams} streams`);
  const name = `tcp${streams}`;
  return {
    values: {
      [`${name}.gbps`]: gbps,
      [`${name}.cpuPerGB`]: machine.busySeconds / gigabytes,
      ...(bed.tunnelPids.length > 0 ? { [`${name}.tunnelCpuPerGB`]: tunnelSeconds / gigabytes } : {}),
    },
    raw: {
      [name]: {
        intervalsGbps: report.intervals.map((interval) => interval.sum.bits_per_second / 1e9),
        retransmits: report.end.sum_sent.retransmits,
        iperf3Cpu: report.end.cpu_utilization_percent,
        machine,
        tunnelSeconds,
        gigabytes,
      },
    },
  };
}

/**
 * The part of iperf3's JSON that is used.
 * @typedef {object} Report
 * @property {{ sum: { bytes: number, bits_per_second: number, omitted: boolean } }[]} intervals
 * @property {{ sum_received: { bits_per_second: number }, sum_sent: { retransmits: number }, cpu_utilization_percent: object }} end
 */

/**
 * @param {string} text
 * @returns {Report}
 */
function parseReport(text) {
  let report;
  try {
    report = JSON.parse(text);
  } catch {
    throw new BenchError(`iperf3 gave no report: ${text.trim().split('\n', 1)[0] || 'no output'}`);
  }
  if (report.error !== undefined) throw new BenchError(`iperf3: ${report.error}`);
  return report;
}

/** @param {readonly number[]} numbers */
function sum(numbers) {
  return numbers.reduce((total, value) => total + value, 0);
}
