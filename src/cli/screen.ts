/** A block of lines on a terminal that is drawn again in the same place. */

/** Where it is drawn: `process.stdout`. */
export interface Output {
  write(text: string): void;
  readonly columns?: number;
  readonly rows?: number;
}

export class Screen {
  readonly #output: Output;
  #drawn = 0;

  constructor(output: Output) {
    this.#output = output;
  }

  /** Room for a line, in characters. The last column stays free, or some terminals would break the line. */
  get width(): number {
    return (this.#output.columns ?? 80) - 1;
  }

  /** Room for a block, in lines. */
  get height(): number {
    return (this.#output.rows ?? Number.POSITIVE_INFINITY) - 1;
  }

  /**
   * Puts the lines in the place of the block before: cursor up, each line cleared to its end. What has scrolled off the
   * top cannot be redrawn, so that of a block that is too high only `keep` is shown.
   */
  draw(lines: readonly string[], keep: 'first' | 'last' = 'last'): void {
    const shown =
      lines.length <= this.height ? lines : keep === 'last' ? lines.slice(-this.height) : lines.slice(0, this.height);
    const up = this.#drawn > 0 ? `\u001b[${String(this.#drawn)}A` : '';
    this.#output.write(`${up}\r${shown.map((line) => `${line}\u001b[K\n`).join('')}\u001b[J`);
    this.#drawn = shown.length;
  }

  /** The last block stands; the next one goes below it. */
  end(): void {
    this.#drawn = 0;
  }
}
