/**
 * WireGuard devices and keys. A device is the kernel's, or where the kernel has none a `wireguard-go` process; both are
 * set up through the standard `wg` tool (wg(8)), which takes everything on its standard input, so that no key is ever
 * an argument that other users can see.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { createPrivateKey, createPublicKey, randomBytes } from 'node:crypto';
import { link, mkdir, open, readFile, rm } from 'node:fs/promises';
import { connect } from 'node:net';
import { dirname } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { errnoOf, messageOf, PodwireError } from '../errors.js';
import type { Prefix } from '../net/prefix.js';
import { programEnvironment, type Runner } from './exec.js';

export interface WireguardKeys {
  /** Base64. Secret. */
  readonly privateKey: string;
  /** Base64. */
  readonly publicKey: string;
}

export interface WireguardPeer {
  readonly publicKey: string;
  /** `192.0.2.1:51820`, `[2001:db8::1]:51820`. */
  readonly endpoint: string;
  readonly allowedIps: readonly Prefix[];
}

export interface WireguardSettings {
  readonly privateKey: string;
  readonly listenPort: number;
  /** Base64, of every peer. Secret. */
  readonly presharedKey?: string | undefined;
  /** Seconds; 0: none. */
  readonly keepaliveSeconds: number;
}

/** 32 bytes in base64: a key of either kind. */
export function isWireguardKey(text: unknown): text is string {
  return typeof text === 'string' && /^[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=$/.test(text);
}

/** DER of a PKCS #8 X25519 private key up to the 32 bytes of the key itself (RFC 8410). */
const PKCS8_X25519 = Buffer.from('302e020100300506032b656e04220420', 'hex');

/** The public key of a private one. */
export function wireguardPublicKey(privateKey: string): string {
  const key = createPrivateKey({
    key: Buffer.concat([PKCS8_X25519, Buffer.from(privateKey, 'base64')]),
    format: 'der',
    type: 'pkcs8',
  });
  return createPublicKey(key).export({ format: 'der', type: 'spki' }).subarray(-32).toString('base64');
}

/** New keys; the private one is clamped as RFC 7748 wants it, and as `wg genkey` does. */
export function generateWireguardKeys(): WireguardKeys {
  const bytes = randomBytes(32);
  bytes[0]! &= 248;
  bytes[31] = (bytes[31]! & 127) | 64;
  const privateKey = bytes.toString('base64');
  return { privateKey, publicKey: wireguardPublicKey(privateKey) };
}

/**
 * The keys of a file, made with new ones (mode 0400) when there is none.
 *
 * @throws {PodwireError} `SYSTEM` (unreadable, not writable), `INVALID_ARGUMENT` (no key in it).
 */
export async function wireguardKeysOf(path: string): Promise<WireguardKeys> {
  try {
    return parseKeys(path, await readFile(path, 'utf8'));
  } catch (error) {
    if (errnoOf(error) !== 'ENOENT') throw keyFileError('read', path, error);
  }
  const keys = generateWireguardKeys();
  const temporary = `${path}.${process.pid}.${randomBytes(4).toString('hex')}`;
  try {
    await mkdir(dirname(path), { recursive: true, mode: 0o755 });
    const file = await open(temporary, 'wx', 0o400);
    try {
      await file.writeFile(`${keys.privateKey}\n`);
      await file.sync();
    } finally {
      await file.close();
    }
    // Whole or not at all, and never over another's: of two agents that start together both use the first one's.
    await link(temporary, path);
    return keys;
  } catch (error) {
    if (errnoOf(error) === 'EEXIST') return parseKeys(path, await readFile(path, 'utf8'));
    throw keyFileError('write', path, error);
  } finally {
    await rm(temporary, { force: true }).catch(() => undefined);
  }
}

function parseKeys(path: string, text: string): WireguardKeys {
  const privateKey = text.trim();
  if (!isWireguardKey(privateKey)) {
    throw new PodwireError(
      'INVALID_ARGUMENT',
      `the WireGuard key file ${path} holds no private key (44 characters of base64): remove it, or write one with wg genkey`,
    );
  }
  return { privateKey, publicKey: wireguardPublicKey(privateKey) };
}

function keyFileError(verb: string, path: string, error: unknown): PodwireError {
  if (error instanceof PodwireError) return error;
  const errno = errnoOf(error);
  return new PodwireError('SYSTEM', `cannot ${verb} the WireGuard key file ${path}: ${messageOf(error)}`, {
    cause: error,
    ...(errno === undefined ? {} : { errno }),
  });
}

/** What `wg setconf` and `wg syncconf` read. */
export function wireguardConfig(settings: WireguardSettings, peers: readonly WireguardPeer[]): string {
  const lines = ['[Interface]', `PrivateKey = ${settings.privateKey}`, `ListenPort = ${settings.listenPort}`];
  for (const { publicKey, endpoint, allowedIps } of peers) {
    lines.push('[Peer]', `PublicKey = ${publicKey}`, `Endpoint = ${endpoint}`);
    lines.push(`AllowedIPs = ${allowedIps.join(', ')}`);
    if (settings.presharedKey !== undefined) lines.push(`PresharedKey = ${settings.presharedKey}`);
    if (settings.keepaliveSeconds > 0) lines.push(`PersistentKeepalive = ${settings.keepaliveSeconds}`);
  }
  return `${lines.join('\n')}\n`;
}

export interface WireguardDeviceOptions {
  readonly device: string;
  readonly runner: Runner;
  /** Hears once when wireguard-go has ended by itself, with the reason, and once when it runs again. */
  readonly onNotice: (level: 'info' | 'error', message: string) => void;
  /** The device is there again and has lost its settings. */
  readonly onRestarted: () => void;
}

/** wg opens the file it is given; a child's standard input is a socket here, which cannot be opened, a pipe can. */
const SYNC = 'cat | wg syncconf "$1" /dev/stdin';
const GO_PROGRAM = 'wireguard-go';
/** Where wireguard-go listens for wg, one socket a device. */
const SOCKETS = '/var/run/wireguard';
/** How long one that has lost its device may take to end. */
const LEAVING_LIMIT_MS = 3_000;
const READY_LIMIT_MS = 5_000;
const READY_STEP_MS = 20;
const RESTART_MS = { first: 200, last: 10_000 };

export class WireguardDevice {
  readonly #options: WireguardDeviceOptions;
  #child: ChildProcess | undefined;
  #isKernel = false;
  #isClosed = false;
  #failures = 0;
  #restart: NodeJS.Timeout | undefined;

  private constructor(options: WireguardDeviceOptions) {
    this.#options = options;
  }

  /**
   * Makes the device, the kernel's if it can; one of that name that an earlier agent left is removed first.
   *
   * @throws {PodwireError} `UNSUPPORTED` (neither), `COMMAND_FAILED`.
   */
  static async open(options: WireguardDeviceOptions): Promise<WireguardDevice> {
    const { runner, device } = options;
    const wireguard = new WireguardDevice(options);
    await removeDevice(runner, device);
    try {
      await runner('ip', ['link', 'add', 'dev', device, 'type', 'wireguard']);
      wireguard.#isKernel = true;
      return wireguard;
    } catch (error) {
      if (!/Operation not supported|Unknown device type/.test(messageOf(error))) throw error;
    }
    await wireguard.#launch();
    return wireguard;
  }

  /** `kernel` or `wireguard-go`. */
  get carriedBy(): 'kernel' | 'wireguard-go' {
    return this.#isKernel ? 'kernel' : GO_PROGRAM;
  }

  /**
   * Sets keys, port and peers; sessions with peers that stay go on.
   *
   * @throws {PodwireError} `COMMAND_FAILED`.
   */
  async configure(settings: WireguardSettings, peers: readonly WireguardPeer[]): Promise<void> {
    const { runner, device } = this.#options;
    await runner('sh', ['-c', SYNC, 'wg', device], { input: wireguardConfig(settings, peers) });
  }

  /** Removes the device, as flanneld does: without its agent nothing is decrypted for a subnet that may be another's. */
  async close(): Promise<void> {
    this.#isClosed = true;
    clearTimeout(this.#restart);
    await removeDevice(this.#options.runner, this.#options.device).catch(() => undefined);
    const child = this.#child;
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
    const ended = new Promise((resolve) => child.once('exit', resolve));
    child.kill('SIGTERM');
    const timer = setTimeout(() => child.kill('SIGKILL'), 2_000);
    await ended;
    clearTimeout(timer);
  }

  async #launch(): Promise<void> {
    const { runner, device, onNotice } = this.#options;
    await untilUnheard(device);
    const child = spawn(GO_PROGRAM, ['-f', device], {
      stdio: ['ignore', 'ignore', 'pipe'],
      env: { ...programEnvironment(), WG_PROCESS_FOREGROUND: '1', LOG_LEVEL: 'error' },
      detached: true,
    });
    this.#child = child;
    let said = '';
    child.stderr?.setEncoding('utf8').on('data', (text: string) => (said = (said + text).slice(-2_000)));
    const ended = new Promise<string>((resolve) => {
      child.once('error', (error) => resolve(messageOf(error)));
      // Not 'exit': what it said may come behind that.
      child.once('close', (code, signal) => {
        // It prints a banner; what counts is its last line.
        const last = said.trim().split('\n').at(-1) ?? '';
        resolve(`${signal ?? `exit code ${String(code)}`}${last === '' ? '' : `: ${last}`}`);
      });
    });
    let end: string | undefined;
    void ended.then((how) => (end = how));
    const deadline = performance.now() + READY_LIMIT_MS;
    for (;;) {
      const isThere = await runner('wg', ['show', device, 'listen-port']).then(
        () => true,
        (error: unknown) => {
          if (/not found/.test(messageOf(error))) throw error;
          return false;
        },
      );
      if (isThere) break;
      if (end !== undefined) {
        throw new PodwireError(
          'UNSUPPORTED',
          `this kernel has no WireGuard, and wireguard-go could not take its place (${end}): load the module (modprobe wireguard), or install wireguard-go`,
        );
      }
      if (performance.now() > deadline) {
        child.kill('SIGKILL');
        throw new PodwireError('COMMAND_FAILED', `wireguard-go ${device}: not ready within ${READY_LIMIT_MS / 1000} s`);
      }
      await sleep(READY_STEP_MS);
    }
    void ended.then((how) => {
      if (this.#isClosed || this.#child !== child) return;
      if (this.#failures === 0) onNotice('error', `wireguard-go for ${device} has ended (${how}): it is started again`);
      this.#relaunch();
    });
  }

  #relaunch(): void {
    const delayMs = Math.min(RESTART_MS.last, RESTART_MS.first * 2 ** this.#failures);
    this.#failures++;
    this.#restart = setTimeout(() => {
      this.#launch().then(
        () => {
          this.#failures = 0;
          this.#options.onNotice('info', `wireguard-go for ${this.#options.device} runs again`);
          this.#options.onRestarted();
        },
        () => {
          if (!this.#isClosed) this.#relaunch();
        },
      );
    }, delayMs);
  }
}

/**
 * A wireguard-go whose agent was killed ends when its device goes. Until then its socket is in use, and what it removes
 * at its end would be the next one's.
 */
async function untilUnheard(device: string): Promise<void> {
  const deadline = performance.now() + LEAVING_LIMIT_MS;
  while (performance.now() < deadline && (await isHeard(`${SOCKETS}/${device}.sock`))) await sleep(READY_STEP_MS);
}

function isHeard(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(path);
    socket.once('connect', () => {
      socket.destroy();
      resolve(true);
    });
    socket.once('error', () => resolve(false));
  });
}

async function removeDevice(runner: Runner, device: string): Promise<void> {
  try {
    await runner('ip', ['link', 'del', 'dev', device]);
  } catch (error) {
    if (!/Cannot find device/.test(messageOf(error))) throw error;
  }
}
