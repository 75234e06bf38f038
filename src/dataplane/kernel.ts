/**
 * The file descriptors of a data plane: TUN queues, receive sockets, send sockets, raw ICMP sockets and eventfds. The
 * main thread owns them all, so that they outlive a worker that dies; closing happens here and nowhere else.
 */
import type { PodwireError } from '../errors.js';
import { addon, errnoName, openTun, systemError } from '../io/native.js';
import type { Capabilities } from '../io/ports.js';
import type { ResolvedOptions } from './options.js';

/** Outer source ports that flows are spread over. */
const SEND_SOCKETS = 16;
const BUFFER_BYTES = 8 << 20;
/** Packets that may wait in the TUN while workers are busy; the kernel's default is 500, which a burst fills in 2 ms. */
const TUN_QUEUE_PACKETS = 2000;

interface Queue {
  readonly tunFd: number;
  udpFd: number;
  readonly wakeFd: number;
}

export class KernelSide {
  readonly device: { readonly name: string; readonly index: number };
  readonly capabilities: Capabilities;
  readonly queues: readonly Queue[];
  readonly sendFds: readonly number[];
  readonly icmp4Fd: number;
  readonly icmp6Fd: number;
  readonly #options: ResolvedOptions;
  /** Drops of sockets that were closed when their worker died. */
  #closedDrops = 0;

  private constructor(
    options: ResolvedOptions,
    device: { name: string; index: number },
    capabilities: Capabilities,
    queues: readonly Queue[],
    sendFds: readonly number[],
    icmp4Fd: number,
    icmp6Fd: number,
  ) {
    this.#options = options;
    this.device = device;
    this.capabilities = capabilities;
    this.queues = queues;
    this.sendFds = sendFds;
    this.icmp4Fd = icmp4Fd;
    this.icmp6Fd = icmp6Fd;
  }

  /**
   * Opens everything, or nothing.
   * @throws PodwireError PORT_IN_USE, DEVICE_IN_USE, PERMISSION, DEVICE, SYSTEM
   */
  static open(options: ResolvedOptions): KernelSide {
    const opened: number[] = [];
    const keep = (fd: number): number => {
      opened.push(fd);
      return fd;
    };
    try {
      const many = options.workers > 1;
      const isUdp = options.encapsulation.carrier === 'udp';
      const segments = isUdp && options.udp === 'gso' ? addon().probeUdpSegments() : 0;
      const udp = options.udp === 'gso' && segments === 0 ? 'mmsg' : options.udp;
      // The sockets come first: a second agent is told about the port before it has made a device.
      const receive: number[] = [];
      for (let i = 0; i < options.workers; i++) receive.push(keep(openReceiver(options, udp === 'gso', i === 0)));
      const first = openTun(options.device, options.tun, many, true);
      keep(first.fd);
      const tun = [first.fd];
      for (let i = 1; i < options.workers; i++) tun.push(keep(openTun(first.name, first.rung, true, false).fd));
      addon().tunQueueLength(first.name, TUN_QUEUE_PACKETS);
      const sendFds = options.fixedSourcePort
        ? [receive[0]!]
        : Array.from({ length: SEND_SOCKETS }, () => keep(openSender(options)));
      const icmp4Fd = addon().icmpOpen(4);
      if (icmp4Fd >= 0) keep(icmp4Fd);
      const icmp6Fd = addon().icmpOpen(6);
      if (icmp6Fd >= 0) keep(icmp6Fd);
      const queues = receive.map((udpFd, i) => ({ tunFd: tun[i]!, udpFd, wakeFd: keep(openEvent()) }));
      const capabilities: Capabilities = {
        tun: first.rung,
        udp,
        udpSegments: Math.max(1, segments),
        workers: options.workers,
        checksum: addon().layout().checksumVariant,
        rawIcmp: icmp4Fd >= 0,
      };
      const device = { name: first.name, index: first.index };
      return new KernelSide(
        options,
        device,
        capabilities,
        queues,
        sendFds,
        Math.max(-1, icmp4Fd),
        Math.max(-1, icmp6Fd),
      );
    } catch (error) {
      for (const fd of opened) addon().closeFd(fd);
      throw error;
    }
  }

  /** The send sockets of worker `index`: with a fixed source port its own receive socket. */
  sendersOf(index: number): readonly number[] {
    return this.#options.fixedSourcePort ? [this.queues[index]!.udpFd] : this.sendFds;
  }

  /** Ends the wait of worker `index`, now or at its next. */
  wake(index: number): void {
    addon().eventSignal(this.queues[index]!.wakeFd);
  }

  /**
   * Takes the queue of a dead worker out of the kernel's steering: its TUN queue is detached and its socket closed, so
   * that nothing waits where nobody reads. A single queue stays: what arrives waits for the worker's return.
   */
  sideline(index: number): void {
    if (this.queues.length === 1) return;
    const queue = this.queues[index]!;
    addon().tunAttach(queue.tunFd, false);
    const drops = addon().socketDrops(queue.udpFd);
    if (drops > 0) this.#closedDrops += drops;
    addon().closeFd(queue.udpFd);
    queue.udpFd = -1;
  }

  /** Undoes {@link sideline}. @throws PodwireError when the port or the queue cannot be had back */
  rejoin(index: number): void {
    const queue = this.queues[index]!;
    if (queue.udpFd < 0) queue.udpFd = openReceiver(this.#options, this.capabilities.udp === 'gso', false);
    if (this.queues.length === 1) return;
    const error = addon().tunAttach(queue.tunFd, true);
    if (error < 0 && errnoName(error) !== 'EINVAL') {
      throw systemError('DEVICE', error, 'TUNSETQUEUE', `cannot attach queue ${index} of ${this.device.name} again`);
    }
  }

  /** Sends the question of a peer probe from the data port. False when it could not be sent. */
  askProbe(address: Uint8Array, port: number, nonce: number): boolean {
    const fd = this.queues.find(({ udpFd }) => udpFd >= 0)?.udpFd;
    return fd !== undefined && addon().probeAsk(fd, address, port, nonce) === 0;
  }

  /** Whether the device still exists. */
  deviceExists(): boolean {
    return typeof addon().linkRead(this.device.index) !== 'number';
  }

  /** Packets that the TUN's queue and the sockets' queues refused since the start. */
  overflows(): { dropTunQueue: number; dropSocketOverflow: number } {
    const link = addon().linkRead(this.device.index);
    let sockets = this.#closedDrops;
    for (const { udpFd } of this.queues) {
      const drops = udpFd < 0 ? 0 : addon().socketDrops(udpFd);
      if (drops > 0) sockets += drops;
    }
    return { dropTunQueue: typeof link === 'number' ? 0 : link.txDropped, dropSocketOverflow: sockets };
  }

  /** Closes everything; the TUN device goes with its last queue. No worker may run any more. */
  close(): void {
    for (const queue of this.queues) {
      for (const fd of [queue.tunFd, queue.udpFd, queue.wakeFd]) if (fd >= 0) addon().closeFd(fd);
    }
    if (!this.#options.fixedSourcePort) for (const fd of this.sendFds) addon().closeFd(fd);
    for (const fd of [this.icmp4Fd, this.icmp6Fd]) if (fd >= 0) addon().closeFd(fd);
  }
}

/**
 * The first socket binds without SO_REUSEPORT and shares only afterwards, so that a second agent's first socket is
 * refused (design 9.5).
 */
function openReceiver(options: ResolvedOptions, gro: boolean, first: boolean): number {
  const many = options.workers > 1;
  if (options.encapsulation.carrier === 'ip') {
    const raw = addon().ipipOpen(options.address.bytes, BUFFER_BYTES);
    if (raw >= 0) return raw;
    throw bindError(options, raw);
  }
  const fd = addon().udpOpen(options.address.bytes, options.port, {
    receive: true,
    gro,
    tos: options.encapsulation.carriesEcn,
    reusePort: many && !first,
    shareAfter: many && first,
    bufferBytes: BUFFER_BYTES,
  });
  if (fd >= 0) return fd;
  throw bindError(options, fd);
}

function openSender(options: ResolvedOptions): number {
  const fd = addon().udpOpen(options.address.bytes, 0, {
    receive: false,
    gro: false,
    tos: false,
    reusePort: false,
    shareAfter: false,
    bufferBytes: BUFFER_BYTES,
  });
  if (fd >= 0) return fd;
  throw bindError({ ...options, port: 0 }, fd);
}

function bindError(options: ResolvedOptions, error: number): PodwireError {
  const what = options.encapsulation.carrier === 'udp' ? `UDP port ${options.port}` : 'a raw socket (protocol 4)';
  const where = `${what} on ${options.address.toString()}`;
  switch (errnoName(error)) {
    case 'EADDRINUSE':
      return systemError(
        'PORT_IN_USE',
        error,
        'bind',
        `${where} is in use: ${holderOf(options)}, or give another port in the network config's Backend`,
      );
    case 'EADDRNOTAVAIL':
      return systemError('INTERFACE', error, 'bind', `${where}: this host does not have that address`);
    case 'EACCES':
    case 'EPERM':
      return systemError('PERMISSION', error, 'bind', `may not bind ${where}`);
    default:
      return systemError('SYSTEM', error, 'bind', `cannot bind ${where}`);
  }
}

/** Who most likely has the port, and how to find out. */
function holderOf(options: ResolvedOptions): string {
  return options.encapsulation.name === 'vxlan'
    ? `a kernel vxlan device ('ip -d link show type vxlan') or another agent has it on this host`
    : 'another agent runs on this host';
}

function openEvent(): number {
  const fd = addon().eventOpen();
  if (fd < 0) throw systemError('SYSTEM', fd, 'eventfd', 'cannot make an eventfd');
  return fd;
}
