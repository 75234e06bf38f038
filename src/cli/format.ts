/** Numbers and times as people read them; `podwire status`, `leases` and `lab` write them alike. */

/** `1.5 GiB`; bytes below 1 KiB as they are. */
export function formatBytes(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${unit === 0 ? value : value.toFixed(1)} ${units[unit]}`;
}

/** The largest unit and the next: `3d 4h`, `2h`, `59m 2s`, `5s`. */
export function formatDuration(ms: number): string {
  let seconds = Math.max(0, Math.floor(ms / 1000));
  const parts: string[] = [];
  for (const [unit, size] of [
    ['d', 86_400],
    ['h', 3_600],
    ['m', 60],
    ['s', 1],
  ] as const) {
    const count = Math.floor(seconds / size);
    seconds -= count * size;
    const isNext = parts.length === 1;
    if (count > 0 || (unit === 's' && !isNext)) parts.push(`${count}${unit}`);
    if (isNext) break;
  }
  return parts.join(' ');
}

/** `8.32 Gbit/s`, `940 Mbit/s`, `12 kbit/s`: three digits or so. */
export function formatRate(value: number, unit: string): string {
  const steps: readonly [number, string][] = [[1e9, 'G'], [1e6, 'M'], [1e3, 'k'], [1, '']]; // prettier-ignore
  const [size, prefix] = steps.find(([step]) => value >= step) ?? [1, ''];
  const scaled = value / size;
  const digits = size === 1 || scaled >= 100 ? 0 : scaled >= 10 ? 1 : 2;
  return `${scaled.toFixed(digits)} ${prefix}${unit}`;
}

/** `180 µs`, `1.25 ms`, `30.0 ms`, `1.20 s`. */
export function formatMicroseconds(us: number): string {
  if (us < 1000) return `${us.toFixed(0)} µs`;
  const [value, unit] = us < 1e6 ? [us / 1000, 'ms'] : [us / 1e6, 's'];
  return `${value.toFixed(value >= 100 ? 0 : value >= 10 ? 1 : 2)} ${unit}`;
}

/** `dropNoRoute` as `no route`. */
export function formatCounterName(name: string): string {
  return name
    .replace(/^drop(?=[A-Z])/, '')
    .replace(/[A-Z]/g, (letter) => ` ${letter.toLowerCase()}`)
    .trim();
}

/** The text cut to `width` characters. */
export function cut(text: string, width: number): string {
  return text.length <= width ? text : `${text.slice(0, Math.max(0, width - 1))}…`;
}
