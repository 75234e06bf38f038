/** The running lab: hosts with their overlay node, pod and traffic programs, and everything's orderly end. */
import { setTimeout as sleep } from 'node:timers/promises';
import { PodwireError } from '../../errors.js';
import type { OverlayTraits } from './backends.js';
import { Endpoint } from './endpoint-client.js';
import type { NodeStatus, Overlay, OverlayNode } from './overlay.js';
import { Topology, type HostPlace, type PodPlace } from './topology.js';

const MEET_TIMEOUT_MS = 5_000;
const POLL_MS = 20;

export interface LabHost {
  readonly place: HostPlace;
  readonly node: OverlayNode;
  readonly pod: PodPlace;
  /** The traffic program in the pod. */
  readonly endpoint: Endpoint;
}

/** Counters of all hosts, summed, and of each host. */
export interface Snapshot {
  readonly totals: Readonly<Record<string, number>>;
  readonly hosts: readonly { readonly host: LabHost; readonly status: NodeStatus }[];
}

export class Lab implements AsyncDisposable {
  readonly #topology: Topology;
  readonly #overlay: Overlay;
  readonly #control: AbortController;
  readonly #hosts: LabHost[] = [];
  /** What must end before the namespaces go, newest last. */
  readonly #running: Set<AsyncDisposable> = new Set();
  #left: Record<string, number> = {};

  /**
   * @param prefix of the namespaces
   * @param control aborted by the caller to end the building of hosts, and by the lab with the error when an agent ends
   *   by itself
   */
  constructor(prefix: string, overlay: Overlay, control: AbortController) {
    this.#topology = new Topology(prefix, overlay.traits.families);
    this.#overlay = overlay;
    this.#control = control;
  }

  get traits(): OverlayTraits {
    return this.#overlay.traits;
  }

  get hosts(): readonly LabHost[] {
    return this.#hosts;
  }

  /** The first two hosts, which most checks are about. */
  get pair(): readonly [LabHost, LabHost] {
    const [a, b] = this.#hosts;
    if (a === undefined || b === undefined)
      throw new PodwireError('INVALID_ARGUMENT', 'the lab has fewer than two hosts');
    return [a, b];
  }

  /** The host after this one, around the ring. */
  next(host: LabHost): LabHost {
    const following = this.#hosts[(this.#hosts.indexOf(host) + 1) % this.#hosts.length];
    if (following === undefined) throw new PodwireError('INVALID_ARGUMENT', 'the lab has no hosts');
    return following;
  }

  /** Builds the underlay and the first hosts. */
  async start(count: number): Promise<void> {
    await this.#topology.createUnderlay();
    const places: HostPlace[] = [];
    for (let number = 1; number <= count; number += 1) {
      this.#control.signal.throwIfAborted();
      places.push(await this.#topology.createHost(number));
    }
    // Two at a time keep the order of hosts and subnets apart from the machine's speed.
    const queue = [...places];
    const lane = async (): Promise<void> => {
      for (let place = queue.shift(); place !== undefined; place = queue.shift()) await this.#populate(place);
    };
    await settled([lane(), lane()]);
    this.#hosts.sort((a, b) => a.place.number - b.place.number);
    await this.#meet();
  }

  /**
   * Waits until all hosts know each other: a host is ready before it has heard of those that came after it, and what is
   * sent before that is lost, as in any network. Hosts that do not meet in time are left to the checks.
   */
  async #meet(): Promise<void> {
    const deadline = performance.now() + MEET_TIMEOUT_MS;
    const subnets = this.#hosts.map(({ node }) => node.subnet.toString());
    const haveMet = async (): Promise<boolean> => {
      const { hosts } = await this.snapshot();
      return hosts.every(({ host, status }) => {
        const own = host.node.subnet.toString();
        return subnets.every((subnet) => subnet === own || status.routed.includes(subnet));
      });
    };
    while (!(await haveMet())) {
      this.#control.signal.throwIfAborted();
      if (performance.now() > deadline) return;
      await sleep(POLL_MS);
    }
    // Where the kernel carries the packets its table is written a moment later.
    for (const host of this.#hosts) {
      for (const address of this.next(host).pod.addresses) {
        this.#control.signal.throwIfAborted();
        await host.endpoint.reaches(address.toString(), deadline);
      }
    }
  }

  async #populate(place: HostPlace): Promise<LabHost> {
    this.#control.signal.throwIfAborted();
    const node = await this.#overlay.join(place, this.#control.signal);
    this.#running.add(node);
    node.failed.catch((error: unknown) => this.#control.abort(error));
    this.#control.signal.throwIfAborted();
    const pod = await this.#topology.createPod(place, node.gateways, node.mtu);
    const host = { place, node, pod, endpoint: await this.#endpoint(pod.netns) };
    this.#hosts.push(host);
    return host;
  }

  async #endpoint(netns: string): Promise<Endpoint> {
    this.#control.signal.throwIfAborted();
    const endpoint = await Endpoint.start(netns);
    this.#running.add(endpoint);
    return endpoint;
  }

  /** One more host, with its agent and pod. */
  async addHost(): Promise<LabHost> {
    const number = 1 + Math.max(0, ...this.#hosts.map((host) => host.place.number));
    return await this.#populate(await this.#topology.createHost(number));
  }

  /** The host's agent gives its lease back and stops; then pod and host go. */
  async removeHost(host: LabHost): Promise<void> {
    const { totals } = await host.node.status();
    this.#left = sum([this.#left, totals]);
    this.#hosts.splice(this.#hosts.indexOf(host), 1);
    await host.node.leave();
    this.#running.delete(host.node);
    await host.endpoint[Symbol.asyncDispose]();
    this.#running.delete(host.endpoint);
    await this.#topology.removeHost(host.place);
  }

  /** Runs `work` with a traffic program in the host's own namespace. */
  async onHost<T>(host: LabHost, work: (endpoint: Endpoint) => Promise<T>): Promise<T> {
    const endpoint = await this.#endpoint(host.place.netns);
    try {
      return await work(endpoint);
    } finally {
      this.#running.delete(endpoint);
      await endpoint[Symbol.asyncDispose]();
    }
  }

  async setPodMtu(host: LabHost, mtu: number): Promise<void> {
    await this.#topology.setPodMtu(host.place, host.pod, mtu);
  }

  /** All counters now. Hosts that left keep their last figures in the totals. */
  async snapshot(): Promise<Snapshot> {
    const hosts = await Promise.all(this.#hosts.map(async (host) => ({ host, status: await host.node.status() })));
    return { totals: sum([this.#left, ...hosts.map(({ status }) => status.totals)]), hosts };
  }

  /** Ends all programs, so that whatever still waits for one of them fails at once. */
  async halt(): Promise<void> {
    await Promise.allSettled([...this.#running].map((running) => running[Symbol.asyncDispose]()));
    this.#running.clear();
  }

  /** Ends programs, then namespaces. Throws what could not be removed. Nothing else may be going on in the lab. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.halt();
    await this.#topology[Symbol.asyncDispose]();
  }
}

/** The sum of counter records, name by name. */
export function sum(records: readonly Readonly<Record<string, number>>[]): Record<string, number> {
  const total: Record<string, number> = {};
  for (const record of records) {
    for (const [name, value] of Object.entries(record)) total[name] = (total[name] ?? 0) + value;
  }
  return total;
}

/** Waits for all to end, then fails with the first failure: nothing goes on behind the caller's back. */
async function settled(work: readonly Promise<void>[]): Promise<void> {
  const results = await Promise.allSettled(work);
  for (const result of results) if (result.status === 'rejected') throw result.reason;
}
