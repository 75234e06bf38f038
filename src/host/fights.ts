/**
 * Who undoes our repairs: for every thing that is put right again and again, when it may be put right next.
 *
 * The first repairs of a thing are made at once. More than a few within a short time are a fight: from then on the
 * distance between repairs doubles, until nobody has undone it for a while.
 */
export interface FightLimits {
  /** Repairs of one thing within `windowMs` that are no fight yet; default 5. */
  readonly repairs?: number;
  /** Default 10,000. */
  readonly windowMs?: number;
  /** First and longest distance between repairs in a fight; default 1,000 and 60,000. */
  readonly firstMs?: number;
  readonly longestMs?: number;
  /** A fight is over after this time without a repair, on top of the distance it has reached; default 30,000. */
  readonly calmMs?: number;
}

interface Record {
  /** Times of the latest repairs, oldest first. */
  repairs: number[];
  /** 0: no fight. */
  distanceMs: number;
  notBefore: number;
}

/** Times are milliseconds of one monotonic clock. */
export class FightBook {
  readonly longestMs: number;
  readonly #repairs: number;
  readonly #windowMs: number;
  readonly #firstMs: number;
  readonly #calmMs: number;
  readonly #records = new Map<string, Record>();

  constructor(limits: FightLimits = {}) {
    this.#repairs = limits.repairs ?? 5;
    this.#windowMs = limits.windowMs ?? 10_000;
    this.#firstMs = limits.firstMs ?? 1_000;
    this.longestMs = limits.longestMs ?? 60_000;
    this.#calmMs = limits.calmMs ?? 30_000;
  }

  /** The things fought over. */
  get open(): string[] {
    return [...this.#records].filter(([, { distanceMs }]) => distanceMs > 0).map(([key]) => key);
  }

  mayRepair(key: string, now: number): boolean {
    return now >= (this.#records.get(key)?.notBefore ?? 0);
  }

  /** Notes a repair. `begins`: it is the one that makes it a fight. */
  repaired(key: string, now: number): 'none' | 'begins' | 'goes on' {
    const record = this.#records.get(key) ?? { repairs: [], distanceMs: 0, notBefore: 0 };
    this.#records.set(key, record);
    record.repairs = [...record.repairs.filter((at) => at > now - this.#windowMs), now].slice(-this.#repairs - 1);
    const isOpen = record.distanceMs > 0;
    if (!isOpen && record.repairs.length <= this.#repairs) return 'none';
    record.distanceMs = isOpen ? Math.min(this.longestMs, record.distanceMs * 2) : this.#firstMs;
    record.notBefore = now + record.distanceMs;
    return isOpen ? 'goes on' : 'begins';
  }

  /**
   * Forgets what has been calm.
   *
   * @param prefix the part whose things were looked at: keys begin with it and a space.
   * @param wrong keys that were wrong at this look.
   * @returns keys of fights that are over.
   */
  settle(prefix: string, wrong: ReadonlySet<string>, now: number): string[] {
    const over: string[] = [];
    for (const [key, { repairs, distanceMs }] of this.#records) {
      if (!key.startsWith(`${prefix} `) || wrong.has(key)) continue;
      if (now - (repairs.at(-1) ?? 0) < this.#calmMs + distanceMs) continue;
      this.#records.delete(key);
      if (distanceMs > 0) over.push(key);
    }
    return over;
  }

  /** When the next look is due because of a fight: a repair that was held back, or the end of one. */
  nextAt(now: number): number | undefined {
    let next: number | undefined;
    for (const { repairs, distanceMs, notBefore } of this.#records.values()) {
      if (distanceMs === 0) continue;
      const at = notBefore > now ? notBefore : (repairs.at(-1) ?? 0) + this.#calmMs + distanceMs;
      next = Math.min(next ?? at, at);
    }
    return next;
  }
}
