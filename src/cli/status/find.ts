/** The agents of this host, by their control sockets. */
import { readdir, readFile } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { defaultControlSocket } from '../../agent/control-path.js';
import { askControlSocket } from '../../agent/control-socket.js';
import { flagNamed } from '../../agent/flags.js';
import { STATUS_SCHEMA, type AgentStatus } from '../../agent/status.js';
import { PodwireError } from '../../errors.js';

export interface FoundAgent {
  readonly controlSocket: string;
  /** Absent while it starts. */
  readonly status?: AgentStatus;
  /** Why there is no status although something listens: one line, for example that this user may not ask. */
  readonly problem?: string;
}

export const USUAL_SOCKET: string = defaultControlSocket(flagNamed('subnet-file')?.default ?? '');

/**
 * Agents of this network namespace whose control socket has its usual name, `podwire-….sock`, in whatever directory.
 * The kernel lists listening sockets by the name they were bound to, which is another one in the same directory.
 * Those of the usual directory come first, the others by path.
 *
 * @param list where the kernel lists them; proc(5)
 */
export async function findAgents(list = '/proc/net/unix'): Promise<readonly FoundAgent[]> {
  const text = await readFile(list, 'utf8').catch(() => '');
  const elsewhere: string[] = [];
  for (const line of text.split('\n')) {
    const path = line.split(' ').at(-1) ?? '';
    if (/^\.pw[0-9a-f]{8}$/.test(basename(path)) && path.startsWith('/')) elsewhere.push(dirname(path));
  }
  // The kernel's list has the order of its hash table: two looks would show the same agents in different orders.
  const directories = new Set([dirname(USUAL_SOCKET), ...elsewhere.sort()]);
  const found: FoundAgent[] = [];
  for (const directory of directories) {
    const names = await readdir(directory).catch(() => []);
    for (const name of names.filter((each) => /^podwire-.+\.sock$/.test(each)).sort()) {
      const agent = await find(join(directory, name));
      if (agent !== undefined) found.push(agent);
    }
  }
  return found;
}

/**
 * Asks the agent at a control socket.
 *
 * @throws {PodwireError} as {@link askControlSocket}; `SYSTEM` when the answer is no status that this version reads.
 */
export async function askStatus(controlSocket: string): Promise<AgentStatus> {
  const answer = await askControlSocket(controlSocket, '/v1/status');
  const schema = typeof answer === 'object' && answer !== null && 'schema' in answer ? answer.schema : undefined;
  if (schema === STATUS_SCHEMA) return answer as AgentStatus;
  throw new PodwireError(
    'SYSTEM',
    `${controlSocket} answers with ${schema === undefined ? 'no podwire status' : JSON.stringify(schema)}, not ` +
      `${JSON.stringify(STATUS_SCHEMA)}: use the podwire command of the agent's own version`,
  );
}

async function find(controlSocket: string): Promise<FoundAgent | undefined> {
  try {
    return { controlSocket, status: await askStatus(controlSocket) };
  } catch (error) {
    if (!(error instanceof PodwireError)) throw error;
    if (error.code !== 'CLOSED') return { controlSocket, problem: error.message };
    // Nobody listens there; an agent that is starting does, and says so.
    return error.errno === undefined ? { controlSocket } : undefined;
  }
}
