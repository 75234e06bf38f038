/**
 * flannel's tree in etcd: `<prefix>/config` and `<prefix>/subnets/<lease key>`, joined as Go's `path.Join` does it.
 *
 * flanneld lists and watches everything that *starts with the string* `<prefix>/subnets`, siblings such as
 * `<prefix>/subnets-old/` included, and finds a lease at the end of any such key. podwire lists the same, follows
 * only real leases, and never gives out a subnet that flanneld believes taken because of such a key.
 */
import { posix } from 'node:path';
import { PodwireError } from '../../../errors.js';
import { Address, Prefix } from '../../../net/prefix.js';
import { tryParseLeaseKey } from '../../lease-key.js';
import type { LeaseSubnets } from '../../lease.js';

export const DEFAULT_PREFIX = '/coreos.com/network';

/** Searched for at the end of a whole key; the second and third separator are any character to flannel. */
const FLANNEL_LEASE = /(\d+\.\d+.\d+.\d+)-(\d+)(?:&([a-f0-9:]+)-(\d+))?$/;

export class EtcdKeys {
  /** As given, for messages. */
  readonly prefix: string;
  readonly configPath: string;
  readonly subnetsPath: string;
  readonly config: Buffer;
  /** The range of everything flanneld looks at. */
  readonly first: Buffer;
  readonly end: Buffer;

  /** @throws PodwireError INVALID_ARGUMENT for a prefix that cannot be meant. */
  constructor(prefix: string = DEFAULT_PREFIX) {
    // eslint-disable-next-line no-control-regex -- control characters are what is looked for
    if (prefix.trim() === '' || /[\u0000-\u001f\u007f]/.test(prefix)) {
      throw new PodwireError(
        'INVALID_ARGUMENT',
        `the etcd prefix ${JSON.stringify(prefix)} is empty or has control characters; give one like ${DEFAULT_PREFIX}`,
      );
    }
    this.prefix = prefix;
    this.configPath = posix.join(prefix, 'config');
    this.subnetsPath = posix.join(prefix, 'subnets');
    this.config = Buffer.from(this.configPath);
    this.first = Buffer.from(this.subnetsPath);
    this.end = Buffer.from(this.first);
    this.end[this.end.length - 1]! += 1;
  }

  /** The etcd key of an entry by its {@link nameOf name}. */
  keyOf(name: string): Buffer {
    return Buffer.from(this.pathOf(name));
  }

  pathOf(name: string): string {
    return name.startsWith(this.subnetsPath) ? name : `${this.subnetsPath}/${name}`;
  }

  /** What the table calls an etcd key: the part behind `subnets/`, or all of a key that is elsewhere. */
  nameOf(key: Buffer): string {
    const text = key.toString();
    const under = `${this.subnetsPath}/`;
    return text.startsWith(under) ? text.slice(under.length) : text;
  }

  /** The subnets that flanneld takes for leased because of an entry that is no lease to us. */
  heldByFlannel(name: string): LeaseSubnets | undefined {
    if (tryParseLeaseKey(name)) return undefined;
    const match = FLANNEL_LEASE.exec(name);
    const subnet = prefixOf(match?.[1], match?.[2], 4);
    if (!match || !subnet) return undefined;
    const subnet6 = prefixOf(match[3], match[4], 6);
    return { subnet, ...(subnet6 && { subnet6 }) };
  }
}

function prefixOf(addressText: string | undefined, lengthText: string | undefined, family: 4 | 6): Prefix | undefined {
  const address = addressText === undefined ? undefined : Address.tryParse(addressText);
  const length = Number(lengthText);
  if (address?.family !== family || !(length >= 1 && length <= (family === 4 ? 31 : 127))) return undefined;
  return Prefix.of(address, length);
}
