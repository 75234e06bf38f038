import { createServer, connect, type Server, type Socket } from 'node:net';

/** A TCP proxy on loopback that can be cut like a cable, or go deaf like a lost route. */
export class TcpProxy implements AsyncDisposable {
  readonly #server: Server;
  readonly #pairs = new Set<{ client: Socket; target: Socket }>();
  #state: 'open' | 'cut' | 'deaf' = 'open';
  /** Sees what clients send before it is passed on; what it does to the proxy's state counts for that data's answer. */
  onRequest: ((data: Buffer) => void) | undefined;
  connections = 0;

  private constructor(server: Server) {
    this.#server = server;
  }

  /** Listens on a port of its own and passes everything on to `target` (`http://127.0.0.1:2379`). */
  static async open(target: string): Promise<TcpProxy> {
    const { hostname, port } = new URL(target);
    const server = createServer();
    const proxy = new TcpProxy(server);
    server.on('connection', (client) => proxy.#accept(client, hostname, Number(port)));
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.listen(0, '127.0.0.1', resolve);
    });
    return proxy;
  }

  get port(): number {
    const address = this.#server.address();
    if (address === null || typeof address === 'string') throw new Error('the proxy is closed');
    return address.port;
  }

  get url(): string {
    return `http://127.0.0.1:${this.port}`;
  }

  /** Breaks all connections and refuses new ones. */
  cut(): void {
    this.#state = 'cut';
    this.#destroyAll();
  }

  /** Connections stay, and new ones are accepted, but nothing passes. */
  goDeaf(): void {
    this.#state = 'deaf';
    for (const { client, target } of this.#pairs) {
      client.pause();
      target.pause();
    }
  }

  /** Ends whatever fault there is. */
  heal(): void {
    // What was held back is lost, as after a long break of a route.
    if (this.#state === 'deaf') this.#destroyAll();
    this.#state = 'open';
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#destroyAll();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  #accept(client: Socket, host: string, port: number): void {
    client.on('error', () => client.destroy());
    if (this.#state === 'cut') {
      client.destroy();
      return;
    }
    this.connections++;
    const target = connect(port, host);
    const pair = { client, target };
    this.#pairs.add(pair);
    const end = (): void => {
      client.destroy();
      target.destroy();
      this.#pairs.delete(pair);
    };
    target.on('error', end);
    client.on('close', end);
    target.on('close', end);
    client.on('data', (data) => {
      target.write(data);
      this.onRequest?.(data);
    });
    target.on('data', (data) => {
      if (this.#state === 'open') client.write(data);
    });
    if (this.#state === 'deaf') {
      client.pause();
      target.pause();
    }
  }

  #destroyAll(): void {
    for (const { client, target } of this.#pairs) {
      client.destroy();
      target.destroy();
    }
    this.#pairs.clear();
  }
}
