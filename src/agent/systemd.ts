/**
 * What a service manager is told, in the protocol of sd_notify(3): one datagram a message to `NOTIFY_SOCKET`.
 * Without that variable every call does nothing.
 */
import { messageOf } from '../errors.js';
import { addon, errnoName } from '../io/native.js';
import type { Logger } from '../index.js';

/** A datagram holds 1023 bytes here; a status line is cut well before. */
const MAX_STATUS_BYTES = 512;

export interface ServiceManagerOptions {
  readonly logger: Logger;
  /** Default: the addon's `notify`. Returns 0 or -errno. */
  readonly send?: (address: string, text: string) => number;
  readonly pid?: number;
}

export class ServiceManager {
  /** Milliseconds between two signs of life that the manager waits for; undefined when it waits for none. */
  readonly watchdogMs: number | undefined;
  readonly #address: string | undefined;
  readonly #send: (address: string, text: string) => number;
  readonly #logger: Logger;
  #status = '';
  /** The latest failure that was told. */
  #fault: string | undefined;
  /** READY that did not get through: without it the unit's start would time out. */
  #unsent: string | undefined;

  private constructor(address: string | undefined, watchdogMs: number | undefined, options: ServiceManagerOptions) {
    this.#address = address;
    this.watchdogMs = watchdogMs;
    this.#logger = options.logger;
    this.#send = options.send ?? ((to, text) => addon().notify(to, text));
  }

  /**
   * Takes `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID` out of `environment`, so that no program which the
   * agent starts speaks for it.
   */
  static fromEnvironment(environment: NodeJS.ProcessEnv, options: ServiceManagerOptions): ServiceManager {
    const address = environment['NOTIFY_SOCKET'];
    const usec = environment['WATCHDOG_USEC'] ?? '';
    const pid = environment['WATCHDOG_PID'];
    for (const name of ['NOTIFY_SOCKET', 'WATCHDOG_USEC', 'WATCHDOG_PID']) delete environment[name];
    const isOurs = pid === undefined || pid === String(options.pid ?? process.pid);
    const watchdogMs = isOurs && /^[1-9]\d{0,14}$/.test(usec) ? Number(usec) / 1_000 : undefined;
    return new ServiceManager(address === '' ? undefined : address, watchdogMs, options);
  }

  get isPresent(): boolean {
    return this.#address !== undefined;
  }

  /** Started, or reloaded: units that wait for us go on. */
  ready(status: string): void {
    const message = `READY=1\nSTATUS=${this.#remember(status)}`;
    this.#unsent = this.#notify(message) ? undefined : message;
  }

  /** To be called now and then: says again what a busy manager did not take. */
  retry(): void {
    if (this.#unsent !== undefined && this.#notify(this.#unsent)) this.#unsent = undefined;
  }

  /** The line of `systemctl status`; sent only when it is another than before. */
  status(text: string): void {
    const before = this.#status;
    if (this.#remember(text) !== before) this.#notify(`STATUS=${this.#status}`);
  }

  /** A sign of life. Whoever calls this has looked. */
  alive(): void {
    this.#notify('WATCHDOG=1');
  }

  /** A reload begins; `Type=notify-reload` needs the monotonic time of it. {@link ready} ends it. */
  reloading(): void {
    this.#notify(`RELOADING=1\nMONOTONIC_USEC=${process.hrtime.bigint() / 1_000n}`);
  }

  stopping(): void {
    this.#notify('STOPPING=1\nSTATUS=stopping');
  }

  #remember(text: string): string {
    let line = text.replace(/\s*\n\s*/g, ' ');
    while (Buffer.byteLength(line) > MAX_STATUS_BYTES) line = line.slice(0, -16);
    this.#status = line;
    return line;
  }

  /** False when it was not taken. */
  #notify(message: string): boolean {
    if (this.#address === undefined) return true;
    let fault: string | undefined;
    try {
      const result = this.#send(this.#address, message);
      if (result < 0) fault = errnoName(result);
    } catch (error) {
      fault = messageOf(error);
    }
    if (fault !== undefined && fault !== this.#fault) {
      const what = message.replace(/\n.*/s, '');
      this.#logger.warn({ socket: this.#address, reason: fault }, `the service manager cannot be told ${what}`);
    }
    this.#fault = fault;
    return fault === undefined;
  }
}
