import type { NetNs } from './netns.js';
import { until } from './process.js';

/** One Ethernet frame with an IPv4 datagram in it, as far as the tests look. */
export interface CapturedDatagram {
  readonly source: string;
  readonly destination: string;
  readonly sourcePort: number;
  readonly destinationPort: number;
  readonly ttl: number;
  readonly dontFragment: boolean;
  /** Of the UDP datagram. */
  readonly payload: Buffer;
}

const address = (bytes: Buffer, at: number): string => [...bytes.subarray(at, at + 4)].join('.');

function parse(frame: Buffer): CapturedDatagram {
  const ip = frame.subarray(14);
  const udp = ip.subarray((ip.readUInt8(0) & 15) * 4, ip.readUInt16BE(2));
  return {
    source: address(ip, 12),
    destination: address(ip, 16),
    sourcePort: udp.readUInt16BE(0),
    destinationPort: udp.readUInt16BE(2),
    ttl: ip.readUInt8(8),
    dontFragment: (ip.readUInt8(6) & 0x40) !== 0,
    payload: udp.subarray(8, udp.readUInt16BE(4)),
  };
}

/**
 * What passes an interface while `work` runs, in order.
 *
 * @param filter of tcpdump; it must let through whole IPv4 UDP datagrams only.
 * @param isComplete whether all that is to come has come: tcpdump gets a packet after the program it was for, and what
 *   it has not read when it ends is lost.
 */
export async function capture(
  ns: NetNs,
  device: string,
  filter: string,
  work: () => Promise<void>,
  isComplete: (seen: readonly CapturedDatagram[]) => boolean,
): Promise<CapturedDatagram[]> {
  const args = ['-i', device, '-U', '-s', '0', '-w', '-', '--immediate-mode', filter];
  await using tcpdump = ns.spawn('tcpdump', args);
  const chunks: Buffer[] = [];
  tcpdump.child.stdout?.removeAllListeners('data').setEncoding('latin1');
  tcpdump.child.stdout?.on('data', (text: string) => chunks.push(Buffer.from(text, 'latin1')));
  await until(() => /listening on/.test(tcpdump.stderr), { what: 'tcpdump to listen' });
  await work();
  // What does not come at all is for the caller to see in the result.
  await until(() => isComplete(read(chunks)), { what: 'the last datagram', timeoutMs: 5_000 }).catch(() => undefined);
  await tcpdump.stop('SIGINT');
  return read(chunks);
}

/** pcap: a header of 24 bytes, then for each frame 16 bytes, the stored length in the third word, and the frame. */
function read(chunks: readonly Buffer[]): CapturedDatagram[] {
  const file = Buffer.concat(chunks);
  const datagrams: CapturedDatagram[] = [];
  for (let at = 24; at + 16 <= file.length;) {
    const end = at + 16 + file.readUInt32LE(at + 8);
    if (end > file.length) break;
    datagrams.push(parse(file.subarray(at + 16, end)));
    at = end;
  }
  return datagrams;
}
