/**
 * Reads JSON objects the way Go's encoding/json fills a struct, because that is how every flannel node reads
 * the same bytes: field names match without regard to case, a repeated field counts with its last value, `null`
 * leaves a plain field as it was, unknown fields are ignored.
 *
 * `JSON.parse` alone cannot do this: it forgets the order in which `Network` and `network` were written.
 */

/** Deeper documents are refused, so that nothing that walks or prints a value later can overflow the stack. */
const MAX_DEPTH = 200;

export interface JsonField {
  readonly key: string;
  readonly value: unknown;
  /** The value as written, without surrounding space. */
  readonly raw: string;
}

/**
 * The fields of one JSON object in the order written, duplicates included.
 * @throws SyntaxError for anything but one JSON object of bearable depth.
 */
export function jsonFields(text: string): JsonField[] {
  const whole: unknown = JSON.parse(text);
  if (typeof whole !== 'object' || whole === null || Array.isArray(whole)) {
    throw new SyntaxError(`a JSON object is needed, this is ${describeJson(whole)}`);
  }
  // From here on the text is known to be valid JSON: finding the ends of strings and brackets is enough.
  const fields: JsonField[] = [];
  let at = skipSpace(text, 0) + 1;
  for (;;) {
    at = skipSpace(text, at);
    if (text[at] === '}') return fields;
    if (text[at] === ',') at = skipSpace(text, at + 1);
    const keyEnd = endOfString(text, at);
    const key = JSON.parse(text.slice(at, keyEnd)) as string;
    const start = skipSpace(text, skipSpace(text, keyEnd) + 1);
    at = endOfValue(text, start);
    const raw = text.slice(start, at);
    fields.push({ key, value: JSON.parse(raw) as unknown, raw });
  }
}

/** The fields of an object by folded name, each with every occurrence in order. */
export class JsonObject {
  readonly #fields = new Map<string, JsonField[]>();

  /** @throws SyntaxError as {@link jsonFields}. */
  constructor(text: string) {
    for (const field of jsonFields(text)) {
      const name = fold(field.key);
      const seen = this.#fields.get(name);
      if (seen) seen.push(field);
      else this.#fields.set(name, [field]);
    }
  }

  /** The last occurrence, `null` included; for fields whose Go type decodes `null` itself. */
  last(name: string): JsonField | undefined {
    return this.#fields.get(fold(name))?.at(-1);
  }

  /** The last occurrence that is not `null`; for plain Go fields, which `null` leaves alone. */
  lastValue(name: string): JsonField | undefined {
    return this.#fields.get(fold(name))?.findLast((field) => field.value !== null);
  }

  /** The last field of each folded name, in the order their names first appear. */
  lastFields(): JsonField[] {
    return Array.from(this.#fields.values(), (seen) => seen.at(-1)!);
  }

  /** The object with one entry a folded name: the last one written, under its own spelling. */
  toRecord(): Record<string, unknown> {
    return Object.fromEntries(Array.from(this.#fields.values(), (seen) => [seen.at(-1)!.key, seen.at(-1)!.value]));
  }
}

/** One entry of a record by name without regard to case; the last one written wins. */
export function fieldOf(record: Readonly<Record<string, unknown>>, name: string): unknown {
  const key = Object.keys(record).findLast((candidate) => fold(candidate) === fold(name));
  return key === undefined ? undefined : record[key];
}

/** JSON text as Go's encoder writes it: no spaces, and `<`, `>`, `&`, U+2028, U+2029 escaped. */
export function goJson(value: unknown): string {
  return (JSON.stringify(value) ?? 'null').replace(
    /[<>&\u2028\u2029]/g,
    (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, '0')}`,
  );
}

/** A JSON value named for an error message: `a string ("x")`, `the number 5`, `null`. */
export function describeJson(value: unknown): string {
  if (value === null) return 'null';
  if (Array.isArray(value)) return 'an array';
  switch (typeof value) {
    case 'string':
      return `the string ${shorten(JSON.stringify(value))}`;
    case 'number':
    case 'boolean':
      return `${typeof value === 'number' ? 'the number' : 'the value'} ${String(value)}`;
    default:
      return 'an object';
  }
}

/** At most 60 characters on one line, for a value that goes into a message. */
export function shorten(text: string): string {
  const line = text.replace(/\s+/g, ' ');
  return line.length > 60 ? `${line.slice(0, 57)}...` : line;
}

function fold(name: string): string {
  return name.toLowerCase();
}

function skipSpace(text: string, from: number): number {
  let at = from;
  while (text[at] === ' ' || text[at] === '\t' || text[at] === '\n' || text[at] === '\r') at++;
  return at;
}

/** Index after the closing quote of the string that opens at `from`. */
function endOfString(text: string, from: number): number {
  let at = from + 1;
  while (text[at] !== '"') at += text[at] === '\\' ? 2 : 1;
  return at + 1;
}

/** Index after the value that starts at `from`. */
function endOfValue(text: string, from: number): number {
  let depth = 0;
  for (let at = from; at < text.length;) {
    const char = text[at]!;
    if (char === '"') {
      at = endOfString(text, at);
      if (depth === 0) return at;
      continue;
    }
    if (char === '{' || char === '[') {
      if (++depth > MAX_DEPTH) throw new SyntaxError(`nested deeper than ${MAX_DEPTH} levels`);
    } else if (char === '}' || char === ']') {
      if (depth === 0) return trimEnd(text, from, at);
      if (--depth === 0) return at + 1;
    } else if (char === ',' && depth === 0) {
      return trimEnd(text, from, at);
    }
    at++;
  }
  return text.length;
}

function trimEnd(text: string, from: number, to: number): number {
  return from + text.slice(from, to).trimEnd().length;
}
