/** How old an answer may be, in milliseconds: a start that had to wait for its store asks again. */
const FRESH_MS = 1_000;

/** A question to the host that is asked ahead of its use, while something else is waited for. */
export class Early<T> {
  readonly #ask: () => Promise<T>;
  #answer: Promise<T> | undefined;
  readonly #askedAt = performance.now();

  constructor(ask: () => Promise<T>) {
    this.#ask = ask;
    this.#answer = ask();
    this.#answer.catch(() => undefined);
  }

  /** The answer: once the early one, if that is fresh and did not fail; else a new one. */
  async take(): Promise<T> {
    const answer = performance.now() - this.#askedAt < FRESH_MS ? this.#answer : undefined;
    this.#answer = undefined;
    if (answer === undefined) return this.#ask();
    return answer.catch(() => this.#ask());
  }
}
