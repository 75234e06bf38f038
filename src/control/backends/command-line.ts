/**
 * Commands of the network config as argument lists, run without a shell.
 *
 * The text is split at white space as a shell splits it: '…' takes everything literally, "…" keeps white space,
 * backslash takes the next character literally (inside "…" only before `"`, `\` and `$`). `$NAME` and `${NAME}` of the
 * names that the command gets are replaced (not inside '…') and never split again. What would need a shell is refused:
 * whoever needs one writes `sh -c '…'`, where the same names are environment variables.
 */

export type CommandLine = readonly CommandWord[];

/** Text and names, in order. */
type CommandWord = readonly ({ readonly text: string } | { readonly name: string })[];

/** Outside quotes: operators, file name patterns and what stands for a directory or a comment. */
const NEEDS_SHELL = '|&;<>()*?[~#\n';

/**
 * @param names that may be used.
 * @throws {SyntaxError} with a clause that says what cannot be had without a shell, or what is not closed.
 */
export function parseCommandLine(source: string, names: readonly string[]): CommandLine {
  const words: CommandWord[] = [];
  let word: ({ text: string } | { name: string })[] | undefined;
  let quote: '"' | "'" | undefined;
  const add = (text: string): void => {
    word ??= [];
    const last = word.at(-1);
    if (last !== undefined && 'text' in last) last.text += text;
    else word.push({ text });
  };
  for (let at = 0; at < source.length; at++) {
    const char = source[at]!;
    if (quote === "'") {
      if (char === "'") quote = undefined;
      else add(char);
    } else if (char === '\\') {
      const next = source[at + 1];
      if (next === undefined) throw new SyntaxError('it ends with a backslash');
      if (next === '\n') throw new SyntaxError('a line that goes on needs a shell');
      const isEscape = quote === undefined || '"\\$'.includes(next);
      add(isEscape ? next : `\\${next}`);
      at++;
    } else if (char === '"' || (char === "'" && quote === undefined)) {
      // An empty pair of quotes is an argument, too.
      add('');
      quote = quote === char ? undefined : char;
    } else if (char === '$') {
      const [whole = '', braced, plain] = /^\$(?:\{([A-Za-z_]\w*)\}|([A-Za-z_]\w*))/.exec(source.slice(at)) ?? [];
      const name = braced ?? plain;
      if (name === undefined) throw new SyntaxError(`${shown(source, at)} needs a shell`);
      if (!names.includes(name)) {
        throw new SyntaxError(
          `$${name} is not known here${names.length === 0 ? '' : `, only ${names.join(', ')} are`}`,
        );
      }
      word ??= [];
      word.push({ name });
      at += whole.length - 1;
    } else if (char === '`' || (quote === undefined && NEEDS_SHELL.includes(char))) {
      throw new SyntaxError(`${shown(source, at)} needs a shell`);
    } else if (quote === undefined && /[ \t]/.test(char)) {
      if (word !== undefined) words.push(word);
      word = undefined;
    } else add(char);
  }
  if (quote !== undefined) throw new SyntaxError(`the quote ${quote} is not closed`);
  if (word !== undefined) words.push(word);
  if (words.length === 0) throw new SyntaxError('it is empty');
  return words;
}

/** The program and its arguments. */
export function fillCommandLine(line: CommandLine, values: Readonly<Record<string, string>>): [string, ...string[]] {
  const words = line.map((word) =>
    word.map((part) => ('text' in part ? part.text : (values[part.name] ?? ''))).join(''),
  );
  return words as [string, ...string[]];
}

function shown(source: string, at: number): string {
  return JSON.stringify(source.slice(at, at + 12));
}
