/**
 * A link of two native ports in this process and network namespace: two TUN devices with packet sockets on their pod
 * sides (taps.c), UDP sockets on loopback. Everything is the real kernel; only the threads are missing.
 */
import dgram from 'node:dgram';
import { readSync, writeSync } from 'node:fs';
import { setImmediate as breathe } from 'node:timers/promises';
import { addon, createNativePort, openTun } from '../../../dist/io/native.js';
import { completeChecksum } from '../../../dist/io/segmentation.js';
import { Address } from '../../../dist/net/prefix.js';
import { LEASES, LINK_PORT, VirtualHost, segment, superpacketHeader } from '../../../dist/testing.js';

const ADDRESSES = {
  4: ['127.0.0.1', '127.0.0.2', '127.0.0.9'],
  6: ['fd99::1', 'fd99::2', 'fd99::9'],
};
const SEND_SOCKETS = 4;
const VIRTIO_BYTES = 10;
const NEEDS_CSUM = 1;
const GSO_TCPV4 = 1;
const GSO_TCPV6 = 4;
const GSO_UDP_L4 = 5;
const GSO_ECN = 0x80;
const TCP_CWR = 0x80;

/** Over all links of this process whose datagrams are single packets: what reached pods, and the rows that it came in. */
export const delivered = { packets: 0, decisions: 0 };

function checked(result, what) {
  if (result < 0) throw new Error(`${what}: errno ${-result}`);
  return result;
}

/** struct virtio_net_hdr for a packet and what its offload says. */
function virtioHeader(packet, { gso, checksum }) {
  const header = Buffer.alloc(VIRTIO_BYTES);
  if (checksum !== undefined) {
    header[0] = NEEDS_CSUM;
    header.writeUInt16LE(checksum.start, 6);
    header.writeUInt16LE(checksum.offset, 8);
  }
  if (gso !== undefined) {
    const tcp = gso.kind === 'tcp';
    const ecn = tcp && (packet[checksum.start + 13] & TCP_CWR) !== 0 ? GSO_ECN : 0;
    header[1] = tcp ? (packet[0] >>> 4 === 4 ? GSO_TCPV4 : GSO_TCPV6) | ecn : GSO_UDP_L4;
    header.writeUInt16LE(superpacketHeader(packet, gso.kind, gso.size), 2);
    header.writeUInt16LE(gso.size, 4);
  }
  return header;
}

/** The packets that a frame from a packet socket stands for. */
function packetsOf(frame) {
  const type = frame[1] & ~GSO_ECN;
  const packet = Uint8Array.from(frame.subarray(VIRTIO_BYTES));
  if (type === 0) {
    // What was written with NEEDS_CSUM leaves the device as it is: whoever forwards it finishes it.
    const unfinished = (frame[0] & NEEDS_CSUM) !== 0;
    const field = { start: frame.readUInt16LE(6), offset: frame.readUInt16LE(8) };
    if (unfinished && !completeChecksum(packet, field)) throw new Error(`no such field: ${frame.toString('hex')}`);
    return [packet];
  }
  const kind = type === GSO_UDP_L4 ? 'udp' : 'tcp';
  const size = frame.readUInt16LE(4);
  const header = superpacketHeader(packet, kind, size);
  if (header === undefined) throw new Error(`a superpacket of type ${type} that is none: ${frame.toString('hex')}`);
  return segment(packet, kind, header, size);
}

class NativeEnd {
  host;
  address;
  #fds = [];
  #bare;
  #tap;
  #buffer = Buffer.alloc(VIRTIO_BYTES + 65_536);

  /** @param {{tun: string, udp: string, format: import('../../../dist/testing.js').LinkFormat}} options */
  constructor(index, outer, options) {
    this.address = Address.parse(ADDRESSES[outer][index]);
    this.#tap = 3 + index;
    this.#bare = options.format.name === 'udp';
    const encapsulation = options.format.encapsulations[index];
    const tun = openTun(`pwport${index}`, options.tun, false, false);
    if (tun.rung !== options.tun) throw new Error(`asked for TUN rung ${options.tun}, got ${tun.rung}`);
    const gso = options.udp === 'gso';
    const socket = (receive, port) =>
      checked(
        addon().udpOpen(this.address.bytes, port, {
          receive,
          gro: gso && receive,
          tos: receive && encapsulation.carriesEcn,
          reusePort: false,
          shareAfter: false,
          bufferBytes: 16 << 20,
        }),
        `UDP socket on ${this.address.toString()}`,
      );
    const udpFd = socket(true, LINK_PORT);
    const sendFds = Array.from({ length: SEND_SOCKETS }, () => socket(false, 0));
    const wakeFd = checked(addon().eventOpen(), 'eventfd');
    this.#fds = [tun.fd, udpFd, wakeFd, ...sendFds];
    this.host = new VirtualHost({
      local: LEASES[index],
      outer,
      encapsulation,
      openPort: ({ memory, nextHops, reader }) =>
        createNativePort(
          {
            tunFd: tun.fd,
            udpFd,
            wakeFd,
            icmp4Fd: -1,
            icmp6Fd: -1,
            sendFds,
            tun: tun.rung,
            udpSegments: gso ? addon().probeUdpSegments() : 1,
            batchCalls: options.udp !== 'single',
            spin: 'off',
            spinNs: 0,
            encapsulation: { accepts: encapsulation.accepts, innerMtu: 1500 - encapsulation.overhead(outer) },
            memory,
          },
          nextHops,
          reader,
        ),
    });
  }

  /** A device that has just got its queue starts to send some time later: a malformed packet shows when. */
  async ready() {
    const probe = Buffer.alloc(20, 0x45);
    while (this.host.counters().dropMalformed === 0) {
      try {
        this.inject(probe);
      } catch (error) {
        if (error.code !== 'ENOBUFS') throw error;
      }
      this.host.poll();
      await breathe();
    }
    while (this.host.poll() !== 0);
    this.host.port.batch.counters.fill(0);
    this.take();
  }

  inject(packet, offload = {}) {
    writeSync(this.#tap, Buffer.concat([virtioHeader(packet, offload), packet]));
  }

  take() {
    const packets = [];
    for (;;) {
      let bytes;
      try {
        bytes = readSync(this.#tap, this.#buffer);
      } catch (error) {
        if (error.code === 'EAGAIN') return packets;
        throw error;
      }
      packets.push(...packetsOf(this.#buffer.subarray(0, bytes)));
    }
  }

  close() {
    const { ingressPackets, ingressSuperpackets } = this.host.counters();
    if (this.#bare) {
      delivered.packets += ingressPackets;
      delivered.decisions += ingressSuperpackets;
    }
    this.host.close();
    for (const fd of this.#fds) addon().closeFd(fd);
  }
}

export async function openNativeLink(outer, options) {
  const ends = [new NativeEnd(0, outer, options), new NativeEnd(1, outer, options)];
  for (const end of ends) await end.ready();
  const stranger = Address.parse(ADDRESSES[outer][2]);
  const socket = dgram.createSocket(outer === 4 ? 'udp4' : 'udp6');
  await new Promise((done) => socket.bind(0, stranger.toString(), done));
  return {
    format: options.format,
    ends,
    stranger,
    sendAs: (to, payload) =>
      new Promise((done, failed) =>
        socket.send(payload, LINK_PORT, ends[to].address.toString(), (error) => (error ? failed(error) : done())),
      ),
    pause: () => breathe(),
    close: async () => {
      for (const end of ends) end.close();
      await new Promise((done) => socket.close(done));
    },
  };
}
