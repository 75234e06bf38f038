/** The agents of this host, by their control sockets. */
import { readdir, readFile } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { defaultControlSocket } from '../../agent/control-path.js';
import { askControlSocket } from '../../agent/control-socket.js';
import { flagNamed } from '../../agent/flags.js';
import type { AgentStatus } from '../../agent/status.js';
import { PodwireError } from '../../errors.js';

export interface FoundAgent {
  readonly controlSocket: string;
  /** Absent while it starts. */
  readonly status?: AgentStatus;
}

export const USUAL_SOCKET: string = defaultControlSocket(flagNamed('subnet-file')?.default ?? '');

/**
 * Agents of this network namespace whose control socket has its usual name, `podwire-….sock`, in whatever directory.
 * The kernel lists listening sockets by the name they were bound to, which is another one in the same directory.
 *
 * @param list where the kernel lists them; proc(5)
 */
export async function findAgents(list = '/proc/net/unix'): Promise<readonly FoundAgent[]> {
  const text = await readFile(list, 'utf8').catch(() => '');
  const directories = new Set([dirname(USUAL_SOCKET)]);
  for (const line of text.split('\n')) {
    const path = line.split(' ').at(-1) ?? '';
    if (/^\.pw[0-9a-f]{8}$/.test(basename(path)) && path.startsWith('/')) directories.add(dirname(path));
  }
  const found: FoundAgent[] = [];
  for (const directory of directories) {
    const names = await readdir(directory).catch(() => []);
    for (const name of names.filter((each) => /^podwire-.+\.sock$/.test(each)).sort()) {
      const agent = await ask(join(directory, name));
      if (agent !== undefined) found.push(agent);
    }
  }
  return found;
}

async function ask(controlSocket: string): Promise<FoundAgent | undefined> {
  try {
    return { controlSocket, status: (await askControlSocket(controlSocket, '/v1/status')) as AgentStatus };
  } catch (error) {
    if (!(error instanceof PodwireError)) throw error;
    // Nobody listens there; an agent that is starting does, and says so.
    return error.code === 'CLOSED' && error.errno !== undefined ? undefined : { controlSocket };
  }
}
