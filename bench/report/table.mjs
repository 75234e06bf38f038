// @ts-check
/** The document as text for a terminal. */

/** @param {number} value */
export function figure(value) {
  if (!Number.isFinite(value)) return '-';
  const size = Math.abs(value);
  if (size >= 1000) return Math.round(value).toString();
  return value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 || size === 0 ? 2 : 3);
}

/**
 * Columns with two spaces between; the first is left-aligned, the others right-aligned.
 * @param {readonly (readonly string[])[]} rows
 * @param {string} indent
 */
export function columns(rows, indent = '  ') {
  /** @type {number[]} */
  const widths = [];
  for (const row of rows) row.forEach((cell, index) => (widths[index] = Math.max(widths[index] ?? 0, cell.length)));
  return rows.map((row) =>
    (
      indent +
      row
        .map((cell, index) => (index === 0 ? cell.padEnd(widths[index] ?? 0) : cell.padStart(widths[index] ?? 0)))
        .join('  ')
    ).trimEnd(),
  );
}

/** @param {import('./stats.mjs').Spread} value */
function range(value) {
  return value.count > 1 ? `${figure(value.min)} .. ${figure(value.max)}` : '';
}

/**
 * @param {import('./document.mjs').Document} document
 * @returns {string}
 */
export function renderReport(document) {
  const lines = [''];
  if (document.options.quick) lines.push('QUICK RUN: it shows that the benchmark works; the figures mean nothing.', '');
  for (const underlay of [...document.options.underlays, 'control']) lines.push(...renderUnderlay(document, underlay));
  lines.push(...renderTargets(document.targets), ...renderMachine(document));
  if (document.problems.length > 0) lines.push('', 'Problems', ...document.problems.map((problem) => `  ${problem}`));
  return lines.join('\n');
}

/**
 * @param {import('./document.mjs').Document} document
 * @param {string} underlay
 */
function renderUnderlay(document, underlay) {
  const rows = document.summary.filter((row) => row.underlay === underlay);
  if (rows.length === 0) return [];
  const names = {
    veth: 'veth, as it is',
    nic: 'plain NIC: no segmentation offload, GRO on',
    micro: 'single functions',
    control: 'of lease control: etcd, and two hosts on a veth pair',
  };
  /** @type {string[][]} */
  const cells = [];
  for (const { id, title, unit } of document.metrics) {
    const ofMetric = rows.filter((row) => row.metric === id);
    if (ofMetric.length === 0) continue;
    cells.push([`${title}${unit === '' ? '' : ` (${unit})`}`]);
    for (const row of ofMetric) {
      const compared = row.ratio === undefined ? ['', ''] : [`${figure(row.ratio.median)}x`, range(row.ratio)];
      cells.push([`  ${row.contender}`, figure(row.value.median), range(row.value), ...compared]);
    }
  }
  const head = ['', 'median', 'range', `to ${document.baseline}`, 'range'];
  return [`Underlay ${names[/** @type {'veth'} */ (underlay)] ?? underlay}`, ...alignWithTitles([head, ...cells]), ''];
}

/**
 * Titles of metrics are rows of one cell that may be wider than the first column.
 * @param {readonly (readonly string[])[]} rows
 */
function alignWithTitles(rows) {
  const aligned = columns(rows.filter((row) => row.length > 1));
  let next = 0;
  return rows.map((row) => (row.length > 1 ? (aligned[next++] ?? '') : `  ${row[0]}`));
}

/** @param {readonly import('./targets.mjs').Verdict[]} verdicts */
function renderTargets(verdicts) {
  const shown = verdicts.filter((verdict) => verdict.verdict !== 'not measured');
  if (shown.length === 0) return [];
  const rows = shown.map(({ title, underlay, relation, limit, measured, verdict, spansLimit, senderLimited }) => [
    title,
    underlay === 'any' ? '' : underlay,
    `${relation} ${figure(limit)}`,
    measured === undefined ? '' : figure(measured.median),
    measured === undefined ? '' : range(measured),
    `${verdict}${spansLimit ? ' (range on both sides)' : ''}${senderLimited ? " (the sender's limit)" : ''}`,
  ]);
  const missing = verdicts.length - shown.length;
  return [
    'Targets',
    ...columns([['', 'underlay', 'target', 'median', 'range', ''], ...rows]),
    ...(missing > 0 ? [`  ${missing} more were not measured in this run.`] : []),
    '',
  ];
}

/** @param {import('./document.mjs').Document} document */
function renderMachine({ machine, noise, contenders, options, innerMtu, noiseFloor }) {
  const load = noise.loadavg.map((value) => value.toFixed(2)).join(' ');
  const lines = [
    'Machine',
    `  ${machine.cpu}, ${machine.cores} cores, ${machine.kernel}, Node ${machine.node}, ${machine.iperf3}`,
    `  before the run: load ${load}, ${figure(noise.busyPercent)} % busy, ${figure(noise.stealPercent)} % stolen`,
    `  during the run: ${figure(noise.stealPercentDuring)} % stolen; ${options.rounds} round(s), pods' MTU ${innerMtu}`,
  ];
  for (const { contender, percent, metric } of noiseFloor) {
    lines.push(`  noise: ${contender}'s rows spread by ${figure(percent)} % of their median at most (${metric})`);
  }
  for (const { name, version, missing } of contenders)
    lines.push(`  ${name}: ${version ?? `not measured, ${missing}`}`);
  return lines;
}
