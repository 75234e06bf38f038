/**
 * A kernel as plain as can be: carries out the commands that differences() writes, and fails on every one that a real
 * kernel would refuse. Keys are kept as texts.
 */
import type { Change } from '../../../src/host/desired.js';
import type { HostFacts, LinkFacts } from '../../../src/host/host-facts.js';
import type { KernelRoute } from '../../../src/host/routes.js';
import { Prefix } from '../../../src/net/prefix.js';

export interface ModelLink {
  up: boolean;
  mtu: number;
  mac: string;
  addresses: Set<string>;
  neighbours: Map<string, string>;
  fdb: Map<string, string>;
}

export class ModelKernel {
  readonly links = new Map<string, ModelLink>();
  routes: KernelRoute[] = [];

  get facts(): HostFacts {
    const map = <T>(of: (link: ModelLink) => T): Map<string, T> =>
      new Map([...this.links].map(([name, link]) => [name, of(link)]));
    return {
      links: map(({ up, mtu, mac, addresses }): LinkFacts => ({ up, mtu, mac, addresses, entry: {} })),
      routes: this.routes.filter(({ protocol }) => protocol === '111'),
      neighbours: map(({ neighbours }) => new Map(neighbours)),
      fdb: map(({ fdb }) => new Map([...fdb].map(([mac, remote]) => [mac, [remote]]))),
    };
  }

  get foreign(): string[] {
    return this.routes.filter(({ protocol }) => protocol !== '111').map((route) => JSON.stringify(route));
  }

  apply({ command = '' }: Change): void {
    const words = command.split(' ');
    const after = (word: string): string | undefined => {
      const at = words.indexOf(word);
      return at < 0 ? undefined : words[at + 1];
    };
    const device = after('dev') ?? '';
    switch (`${words[0]} ${words[1]}`) {
      case 'link add':
        return this.#make(words[2] ?? '');
      case 'link del':
        this.#link(device);
        this.routes = this.routes.filter((route) => route.device !== device);
        this.links.delete(device);
        return;
      case 'link set':
        return this.#set(device, words.slice(4));
      case 'address replace':
        this.#link(device).addresses.add(words[2]!);
        return;
      case 'address del':
        if (!this.#link(device).addresses.delete(words[2]!)) throw new Error(`no such address: ${command}`);
        return;
      case 'neigh replace':
        this.#link(device).neighbours.set(words[2]!, after('lladdr')!);
        return;
      case 'neigh del':
        if (!this.#link(device).neighbours.delete(words[2]!)) throw new Error(`no such neighbour: ${command}`);
        return;
      case 'fdb replace':
        this.#link(device).fdb.set(words[2]!, after('dst')!);
        return;
      case 'fdb del':
        if (this.#link(device).fdb.get(words[2]!) !== after('dst')) throw new Error(`no such entry: ${command}`);
        this.#link(device).fdb.delete(words[2]!);
        return;
      case 'route add':
      case 'route replace':
        return this.#route(words[1] === 'replace', words[2]!, device, after('via'), after('metric'), words);
      case 'route del':
        return this.#unroute(words[2]!, device, Number(after('metric') ?? 0), after('proto') ?? '');
      default:
        throw new Error(`unknown: ${command}`);
    }
  }

  #make(name: string): void {
    if (this.links.has(name)) throw new Error(`${name} exists`);
    const empty = {
      addresses: new Set<string>(),
      neighbours: new Map<string, string>(),
      fdb: new Map<string, string>(),
    };
    this.links.set(name, { up: false, mtu: 1500, mac: '02:00:00:00:00:ff', ...empty });
  }

  #link(name: string): ModelLink {
    const link = this.links.get(name);
    if (link === undefined) throw new Error(`Cannot find device ${name}`);
    return link;
  }

  #set(name: string, words: readonly string[]): void {
    const link = this.#link(name);
    if (words[0] === 'up') link.up = true;
    else if (words[0] === 'mtu') link.mtu = Number(words[1]);
    else if (words[0] === 'address') link.mac = words[1]!;
    else throw new Error(`unknown: ${words.join(' ')}`);
  }

  #route(
    isReplace: boolean,
    text: string,
    device: string,
    gateway: string | undefined,
    metricText: string | undefined,
    words: readonly string[],
  ): void {
    this.#link(device);
    const destination = Prefix.parse(text);
    const metric = Number(metricText ?? (destination.family === 4 ? 0 : 1024));
    const same = (route: KernelRoute): boolean => route.destination.equals(destination) && route.metric === metric;
    if (!isReplace && this.routes.some(same)) throw new Error(`File exists: ${words.join(' ')}`);
    const at = this.routes.findIndex(same);
    const onlink = words.includes('onlink') ? { onlink: true } : {};
    const route = { destination, device, gateway, metric, protocol: '111', type: 'unicast', ...onlink };
    if (at < 0) this.routes.push(route);
    else this.routes[at] = route;
  }

  #unroute(text: string, device: string, metric: number, protocol: string): void {
    const at = this.routes.findIndex(
      (route) =>
        route.destination.toString() === text &&
        route.device === device &&
        route.metric === metric &&
        route.protocol === protocol,
    );
    if (at < 0) throw new Error(`No such process: ${text} ${device} ${metric}`);
    this.routes.splice(at, 1);
  }
}
