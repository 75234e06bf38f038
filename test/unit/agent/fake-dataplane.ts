import type { Dataplane, DataplaneOptions } from '../../../src/dataplane/dataplane.js';
import { PodwireError } from '../../../src/errors.js';
import type { NextHop } from '../../../src/fib/fib.js';

/** What the code under test did to the data plane, in order. */
export class FakeDataplane {
  readonly events: string[] = [];
  readonly table = new Map<string, string>();
  options: DataplaneOptions | undefined;
  fail: (error: PodwireError) => void = () => undefined;
  /** Routes that the table refuses. */
  readonly refuse = new Set<string>();
  /** The host's own, as last told. */
  ownAddresses: readonly unknown[] = [];

  open = async (options: DataplaneOptions): Promise<Dataplane> => {
    this.options = options;
    this.events.push('open');
    const closed = new Promise<void>((_, reject) => (this.fail = reject));
    closed.catch(() => undefined);
    const routes = {
      set: (prefix: unknown, nextHop: NextHop) => {
        if (this.refuse.has(String(prefix))) throw new PodwireError('CAPACITY', 'the table is full');
        const senders = nextHop.senders === undefined ? '' : ` from ${nextHop.senders.join(' ')}`;
        this.table.set(String(prefix), `${String(nextHop.address)}:${nextHop.port}${senders}`);
      },
      delete: (prefix: unknown) => this.table.delete(String(prefix)),
    };
    return {
      device: { name: 'flannel7', index: 9 },
      mtu: { underlay: 1500, overlay: 1472, overhead: 28 },
      capabilities: {},
      routes,
      closed,
      refreshPathMtu: () => this.events.push('refresh'),
      setLocal: (local: readonly unknown[], ownAddresses: readonly unknown[] = []) => {
        this.events.push(`local ${local.join(' ')}`);
        this.ownAddresses = ownAddresses;
      },
      stats: () => ({ totals: {}, workers: [], peers: [], routes: this.table.size }),
      close: async () => void this.events.push('close'),
    } as unknown as Dataplane;
  };
}
