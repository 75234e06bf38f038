/** Tables of text that fit the width they are given. */
import { cut } from './format.js';

export interface Column<Row> {
  readonly title: string;
  readonly text: (row: Row) => string;
  /** Numbers stand right. Default left. */
  readonly align?: 'left' | 'right';
  /** Where there is no room the column with the highest number goes first; default 0: it stays, and lines are cut. */
  readonly giveWay?: number;
}

const GAP = 2;

/**
 * One line for the titles and one for each row, columns two spaces apart. A column whose every cell is empty is left
 * out.
 *
 * @param width in characters; default unlimited
 */
export function table<Row>(
  columns: readonly Column<Row>[],
  rows: readonly Row[],
  width: number = Number.POSITIVE_INFINITY,
): string[] {
  const measured = columns
    .map((column) => {
      const cells = rows.map(column.text);
      return { column, cells, width: Math.max(column.title.length, ...cells.map((cell) => cell.length)) };
    })
    .filter(({ cells }) => rows.length === 0 || cells.some((cell) => cell !== ''));
  const total = (): number => measured.reduce((sum, one) => sum + one.width + GAP, -GAP);
  while (total() > width) {
    const widest = Math.max(...measured.map(({ column }) => column.giveWay ?? 0));
    if (widest === 0) break;
    measured.splice(
      measured.findLastIndex(({ column }) => column.giveWay === widest),
      1,
    );
  }
  const line = (cellOf: (one: (typeof measured)[number]) => string): string =>
    cut(
      measured
        .map((one) => (one.column.align === 'right' ? cellOf(one).padStart(one.width) : cellOf(one).padEnd(one.width)))
        .join(' '.repeat(GAP))
        .trimEnd(),
      width,
    );
  return [line(({ column }) => column.title), ...rows.map((_, row) => line(({ cells }) => cells[row] ?? ''))];
}
