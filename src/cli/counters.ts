/** Sums over records of counters, as the lab and status show them. */

/** The drop counters of a record that are not zero. */
export function dropsOf(totals: Readonly<Record<string, number>>): Record<string, number> {
  return Object.fromEntries(Object.entries(totals).filter(([name, count]) => name.startsWith('drop') && count > 0));
}

/** What grew between two records. */
export function growth(
  before: Readonly<Record<string, number>>,
  after: Readonly<Record<string, number>>,
): Record<string, number> {
  const grown: Record<string, number> = {};
  for (const [name, value] of Object.entries(after)) {
    const more = value - (before[name] ?? 0);
    if (more > 0) grown[name] = more;
  }
  return grown;
}
