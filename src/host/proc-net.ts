/**
 * What the kernel says of devices and routes in `/proc/self/net`, read without starting a program: cheap enough for a
 * health check every second. Main table only, as the kernel shows it there (net/ipv4/fib_trie.c, net/ipv6/route.c).
 */
import { readFile } from 'node:fs/promises';
import { endianness } from 'node:os';
import { Address, Prefix } from '../net/prefix.js';

const DIRECTORY = '/proc/self/net';
/** RTF_UP and RTF_REJECT of linux/route.h. */
const RTF_UP = 0x1;
const RTF_REJECT = 0x200;

/** Whether this network namespace has a device of that name, up or not. @throws what readFile throws. */
export async function deviceExists(device: string, directory: string = DIRECTORY): Promise<boolean> {
  const text = await readFile(`${directory}/dev`, 'utf8');
  return text.split('\n').some((line) => line.trimStart().startsWith(`${device}:`));
}

/**
 * Whether a route for exactly this prefix leaves by the device. A device that is down or gone has none.
 *
 * @throws what readFile throws; a kernel without IPv6 has no IPv6 routes.
 */
export async function hasRoute(prefix: Prefix, device: string, directory: string = DIRECTORY): Promise<boolean> {
  const text = await readFile(`${directory}/${prefix.family === 4 ? 'route' : 'ipv6_route'}`, 'utf8').catch(
    (error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT' && prefix.family === 6) return '';
      throw error;
    },
  );
  const parse = prefix.family === 4 ? parseRoute4 : parseRoute6;
  return text.split('\n').some((line) => {
    const route = line.includes(device) ? parse(line) : undefined;
    return route !== undefined && route.device === device && route.prefix.equals(prefix);
  });
}

interface ProcRoute {
  readonly device: string;
  readonly prefix: Prefix;
}

/** `Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT`; addresses as words in host order. */
function parseRoute4(line: string): ProcRoute | undefined {
  const [device = '', destination = '', , flags = '', , , , mask = ''] = line.trim().split(/\s+/);
  const address = hexBytes(destination, 4);
  const maskBytes = hexBytes(mask, 4);
  if (address === undefined || maskBytes === undefined || !isUsable(flags)) return undefined;
  if (endianness() === 'LE') {
    address.reverse();
    maskBytes.reverse();
  }
  const length = maskBytes.reduce((sum, byte) => sum + ones(byte), 0);
  return { device, prefix: Prefix.parse(`${Address.fromBytes(address).toString()}/${length}`) };
}

/** `destination length source length next-hop metric references use flags device`; addresses as bytes in hex. */
function parseRoute6(line: string): ProcRoute | undefined {
  const [destination = '', length = '', , , , , , , flags = '', device = ''] = line.trim().split(/\s+/);
  const address = hexBytes(destination, 16);
  if (address === undefined || !isUsable(flags)) return undefined;
  return { device, prefix: Prefix.parse(`${Address.fromBytes(address).toString()}/${Number.parseInt(length, 16)}`) };
}

function isUsable(flags: string): boolean {
  const value = Number.parseInt(flags, 16);
  return (value & RTF_UP) !== 0 && (value & RTF_REJECT) === 0;
}

function hexBytes(text: string, count: number): Uint8Array | undefined {
  if (text.length !== count * 2 || !/^[0-9a-f]+$/i.test(text)) return undefined;
  return Uint8Array.from({ length: count }, (_, index) => Number.parseInt(text.slice(index * 2, index * 2 + 2), 16));
}

function ones(byte: number): number {
  let count = 0;
  for (let rest = byte; rest !== 0; rest &= rest - 1) count++;
  return count;
}
