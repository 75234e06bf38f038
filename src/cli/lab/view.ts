/**
 * The lab on the screen: on a terminal one picture redrawn in place, elsewhere plain lines, for `--json` nothing.
 */
import { styleText } from 'node:util';
import { cut, formatRate } from '../format.js';
import { type Output, Screen } from '../screen.js';
import type { CheckResult } from './checks.js';
import type { Sample } from './figures.js';
import type { LabHost } from './lab.js';

export interface View {
  /** What is being done, until the next one or the first sample. */
  step(text: string): void;
  hosts(hosts: readonly LabHost[]): void;
  sample(sample: Sample): void;
  check(result: CheckResult): void;
  /** The last picture stands; what is printed afterwards goes below it. */
  end(): void;
}

export const silentView: View = {
  step: () => {},
  hosts: () => {},
  sample: () => {},
  check: () => {},
  end: () => {},
};

export function formatDrops(drops: Readonly<Record<string, number>>): string {
  const parts = Object.entries(drops).map(([name, count]) => `${name.replace(/^drop/, '')} ${String(count)}`);
  return parts.length === 0 ? 'none' : parts.join(', ');
}

/** One sample as a line of fixed columns. */
export function formatSample(sample: Sample): string {
  const rtt =
    sample.rttUs === undefined ? 'RTT -' : `RTT ${String(sample.rttUs.p50)} µs (p99 ${String(sample.rttUs.p99)})`;
  return [
    `${String(sample.second).padStart(3)} s`,
    formatRate(sample.bitsPerSecond, 'bit/s').padStart(11),
    formatRate(sample.packetsPerSecond, 'packets/s').padStart(14),
    rtt.padEnd(24),
    `leases ${String(sample.leases)}`,
    `drops ${formatDrops(sample.drops)}`,
  ].join('  ');
}

export function formatHost(host: LabHost): string {
  const { place, node, pod } = host;
  return `host ${String(place.number)}  ${place.address.toString()}  lease ${node.subnet.toString()}  pod ${pod.address.toString()}  mtu ${String(node.mtu)}`;
}

export function formatCheck(result: CheckResult): string {
  return `${result.ok ? 'ok    ' : 'FAILED'} ${result.name.padEnd(15)} ${result.detail}`;
}

export class LinesView implements View {
  readonly #output: Output;

  constructor(output: Output) {
    this.#output = output;
  }

  #line(text: string): void {
    this.#output.write(`${text}\n`);
  }

  step(text: string): void {
    this.#line(text);
  }

  hosts(hosts: readonly LabHost[]): void {
    for (const host of hosts) this.#line(`  ${formatHost(host)}`);
  }

  sample(sample: Sample): void {
    this.#line(formatSample(sample));
  }

  check(result: CheckResult): void {
    this.#line(formatCheck(result));
  }

  end(): void {}
}

const BARS = '▁▂▃▄▅▆▇█';
const HISTORY = 60;

/** Redraws a block of lines in place: cursor up, each line cleared to its end. Lines are cut to the width. */
export class TerminalView implements View {
  readonly #screen: Screen;
  readonly #color: boolean;
  readonly #history: number[] = [];
  readonly #checks: CheckResult[] = [];
  #hosts: readonly string[] = [];
  #step = '';
  #sample: Sample | undefined;

  constructor(output: Output, color: boolean) {
    this.#screen = new Screen(output);
    this.#color = color;
  }

  #style(format: 'bold' | 'dim' | 'green' | 'red' | 'cyan', text: string): string {
    return this.#color ? styleText(format, text) : text;
  }

  step(text: string): void {
    this.#step = text;
    this.#draw();
  }

  hosts(hosts: readonly LabHost[]): void {
    this.#hosts = hosts.map(formatHost);
    this.#draw();
  }

  sample(sample: Sample): void {
    this.#sample = sample;
    this.#history.push(sample.bitsPerSecond);
    if (this.#history.length > HISTORY) this.#history.shift();
    this.#draw();
  }

  check(result: CheckResult): void {
    this.#checks.push(result);
    this.#draw();
  }

  end(): void {
    this.#draw();
    this.#screen.end();
  }

  /** @param width in characters; text is cut first and coloured then */
  #lines(width: number): string[] {
    const lines = [this.#style('bold', cut(this.#step, width)), ...this.#hosts.map((host) => cut(`  ${host}`, width))];
    if (this.#sample !== undefined) {
      lines.push('', cut(formatSample(this.#sample), width));
      lines.push(`      ${this.#style('cyan', cut(sparkline(this.#history), width - 6))}`, '');
    }
    for (const { ok, name, detail } of this.#checks) {
      const text = cut(detail, width - 18);
      const mark = ok ? this.#style('green', '✓') : this.#style('red', '✗');
      lines.push(`${mark} ${name.padEnd(15)} ${ok ? this.#style('dim', text) : text}`);
    }
    return lines;
  }

  #draw(): void {
    this.#screen.draw(this.#lines(this.#screen.width));
  }
}

/** Bars from 0 to the largest value. */
export function sparkline(values: readonly number[]): string {
  const top = Math.max(1, ...values);
  return values.map((value) => BARS[Math.min(BARS.length - 1, Math.floor((value / top) * BARS.length))]).join('');
}
