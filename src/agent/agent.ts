/**
 * The daemon: a directory store and a joined overlay, with a control socket beside them. It is the first embedder of
 * `joinOverlay` and does nothing that another could not.
 */
import { checkSystem } from '../host/system.js';
import { directoryStore, joinOverlay, type Logger, type Overlay } from '../index.js';
import type { AgentConfig } from './config.js';
import { ControlSocket } from './control-socket.js';
import { agentStatus } from './status.js';
import { VERSION } from './version.js';

export interface AgentSurroundings {
  readonly log: Logger;
  /** Ends the agent, whether it is starting or running. */
  readonly signal: AbortSignal;
}

/**
 * Runs until the signal aborts, then stops in order: packets, control socket, store. Nothing of ours is left on the
 * host then but the subnet file.
 *
 * @returns `failed` when the data plane has failed while running and has logged why.
 * @throws {PodwireError} as {@link joinOverlay}; `DEVICE_IN_USE` when an agent for the same subnet file is alive.
 */
export async function runAgent(config: AgentConfig, { log, signal }: AgentSurroundings): Promise<'stopped' | 'failed'> {
  const startedAt = new Date();
  const store = directoryStore(config.store.path);
  log.info({ version: VERSION, pid: process.pid, store: store.description }, 'podwire agent starts');
  for (const warning of config.warnings) log.warn({}, warning);
  await checkSystem();
  let overlay: Overlay | undefined;
  const control = await ControlSocket.open(config.controlSocket, {
    '/v1/status': () =>
      overlay === undefined
        ? undefined
        : agentStatus({ version: VERSION, pid: process.pid, startedAt }, overlay.status()),
  });
  try {
    overlay = await joinOverlay({
      store,
      interface: config.interface,
      subnetFile: config.subnetFile,
      stateDirectory: config.stateDirectory,
      ipMasq: config.ipMasq,
      leaseTtlMs: config.leaseTtlMs,
      ...(config.renewMarginMs === undefined ? {} : { renewMarginMs: config.renewMarginMs }),
      ...(config.txQueueLength === undefined ? {} : { txQueueLength: config.txQueueLength }),
      dataplane: config.dataplane,
      logger: log,
      signal,
    });
    return await Promise.race([
      overlay.closed.then(
        () => 'stopped' as const,
        () => 'failed' as const,
      ),
      aborted(signal).then(() => 'stopped' as const),
    ]);
  } catch (error) {
    // A start that was called off is a clean stop.
    if (!signal.aborted) throw error;
    return 'stopped';
  } finally {
    await overlay?.close({ release: config.releaseOnExit });
    await control.close();
    await store[Symbol.asyncDispose]();
  }
}

function aborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve();
    else signal.addEventListener('abort', () => resolve(), { once: true });
  });
}
