import { mkdir, readdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import {
  AGENT_NEEDS,
  AgentBed,
  type AgentHost,
  errorsOf,
  links,
  ready,
  statusOf,
  subnetEnv,
} from '../support/agents.js';
import { type Process, root, until } from '../support/process.js';
import { missing } from '../support/requires.js';

const NEEDS = { ...AGENT_NEEDS, commands: ['ip', 'python3', 'setpriv', 'curl'] };

/** Prints every datagram as one JSON line, and whether the subnet file was there when it came. */
const RECEIVER = `
import json, os, socket, sys
address, watched = sys.argv[1], sys.argv[2]
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind('\\0' + address[1:] if address.startswith('@') else address)
print(json.dumps({'text': 'BOUND', 'file': False}), flush=True)
while True:
    text = s.recv(4096).decode()
    print(json.dumps({'text': text, 'file': os.path.exists(watched)}), flush=True)
`;

interface Message {
  readonly text: string;
  readonly file: boolean;
}

describe.skipIf(missing(NEEDS))('the agent among its neighbours on a host', () => {
  let bed: AgentBed;
  let a: AgentHost;
  const receivers: Process[] = [];

  beforeAll(async () => {
    bed = await AgentBed.create();
    ({ a } = bed);
  });

  afterAll(() => bed[Symbol.asyncDispose]());

  beforeEach(() => bed.reset());

  afterEach(async () => {
    await bed.killAll();
    for (const receiver of receivers.splice(0)) await receiver[Symbol.asyncDispose]();
  });

  const config = (text: string): Promise<void> => writeFile(join(bed.store, 'config'), text);

  async function receive(address: string): Promise<() => Message[]> {
    const receiver = a.ns.spawn('python3', ['-c', RECEIVER, address, a.subnetFile]);
    receivers.push(receiver);
    await receiver.output(/BOUND/);
    return () =>
      receiver.stdout
        .trim()
        .split('\n')
        .slice(1)
        .map((line) => JSON.parse(line) as Message);
  }

  const get = async (path: string): Promise<string> => {
    const format = ['-s', '-w', ' %{http_code}', '--max-time', '2'];
    return (await a.ns.run('curl', [...format, `http://127.0.0.1:8081${path}`])).stdout;
  };

  test.each([
    ['a path', () => join(a.run, 'notify.sock')],
    ['an abstract name', () => `@pwag-${process.pid}`],
  ])('systemd at %s hears READY behind the subnet file, signs of life, a reload and the stop', async (_, address) => {
    const messages = await receive(address());
    const environment = { NOTIFY_SOCKET: address(), WATCHDOG_USEC: '200000' };
    const agent = bed.startIn(a, { environment });
    const heard = (pattern: RegExp, from = 0): Message | undefined =>
      messages()
        .slice(from)
        .find(({ text }) => pattern.test(text));
    const first = await until(() => heard(/^READY=1\nSTATUS=/), { what: 'READY' });
    expect(first.file).toBe(true);
    expect(messages().filter(({ text, file }) => !file && !/^(WATCHDOG|STATUS)=/.test(text))).toEqual([]);
    expect(first.text).toMatch(/STATUS=10\.42\.\d+\.0\/24 through udp on eth0 \(named by --iface eth0\)/);
    const seen = messages().length;
    await until(
      () =>
        messages()
          .slice(seen)
          .filter(({ text }) => text === 'WATCHDOG=1').length >= 3,
      {
        what: 'three signs of life',
      },
    );
    const before = messages().length;
    agent.child.kill('SIGHUP');
    await until(() => heard(/^READY=1/, before), { what: 'READY after the reload' });
    const texts = messages()
      .slice(before)
      .map(({ text }) => text)
      .filter((text) => text !== 'WATCHDOG=1');
    expect(texts).toEqual([
      expect.stringMatching(/^RELOADING=1\nMONOTONIC_USEC=\d+$/),
      expect.stringMatching(/^READY=1\nSTATUS=10\.42\./),
    ]);
    expect((await agent.stop()).code).toBe(0);
    await until(() => heard(/^STOPPING=1\nSTATUS=stopping$/), { what: 'STOPPING' });
    expect(agent.stderr).not.toContain('"level":"warn"');
  });

  test('a service manager that is not there is told once', async () => {
    const environment = { NOTIFY_SOCKET: join(a.run, 'nobody.sock'), WATCHDOG_USEC: '20000' };
    const agent = bed.startIn(a, { environment });
    await ready(agent);
    await agent.stop();
    const lines = agent.stderr.split('\n').filter((line) => line.includes('the service manager cannot be told'));
    expect(lines).toHaveLength(1);
    expect(lines[0]).toContain('ENOENT');
  });

  test('compiled code is kept when an agent that had joined stops, not by one that had not', async () => {
    const cache = join(a.run, 'cache');
    await mkdir(cache, { mode: 0o700 });
    const environment = { CACHE_DIRECTORY: cache };
    await config('{}');
    const hopeless = bed.startIn(a, { environment });
    expect((await hopeless.finished).code).toBe(1);
    expect(await readdir(cache)).toEqual([]);
    await config('{"Network":"10.42.0.0/16"}');
    const first = bed.startIn(a, { environment });
    await ready(first);
    expect((await first.stop()).code).toBe(0);
    const kept = await readdir(cache);
    expect(kept).toEqual([expect.stringMatching(/^podwire-.*\.cache$/)]);
    const { mtimeMs } = await stat(join(cache, kept[0]!));
    const second = bed.startIn(a, { environment });
    await ready(second);
    expect((await second.stop()).code).toBe(0);
    // It ran that code, and had none of its own to keep.
    expect((await stat(join(cache, kept[0]!))).mtimeMs).toBe(mtimeMs);
  });

  test('health checks have flanneld’s words, turn bad with what pods need, and good again', async () => {
    const agent = await bed.startReady(a, '--healthz-port=8081', '--healthz-ip=127.0.0.1');
    expect([await get('/healthz'), await get('/readyz')]).toEqual(['flanneld is running 200', 'flanneld is ready 200']);
    await rm(a.subnetFile);
    await until(async () => (await get('/readyz')) === 'flanneld is not ready yet 503', { what: 'a missing file' });
    expect(await get('/readyz?verbose')).toMatch(/\[-\] subnet file: .*subnet\.env is gone\n/);
    agent.child.kill('SIGHUP');
    await until(async () => (await get('/readyz')) === 'flanneld is ready 200', { what: 'the file to be back' });
    await a.ns.ip('link', 'set', 'eth0', 'down');
    try {
      await until(async () => (await get('/readyz')) === 'flanneld is not ready yet 503', { what: 'a dead underlay' });
      expect(await get('/readyz?verbose')).toMatch(/\[-\] underlay: eth0 is down/);
      expect(await get('/healthz')).toBe('flanneld is running 200');
      await agent.output(/"msg":"not ready: [^"]*eth0 is down/, { from: 'stderr' });
    } finally {
      await a.ns.ip('link', 'set', 'eth0', 'up');
    }
    await until(async () => (await get('/readyz')) === 'flanneld is ready 200', { what: 'ready again' });
    await agent.output(/"msg":"ready again"/, { from: 'stderr' });
  });

  test('a store that is away is no reason to be unready', async () => {
    await bed.startReady(a, '--healthz-port=8081');
    await rename(bed.store, `${bed.store}.away`);
    await until(async () => !(await statusOf(a)).store.ok, { what: 'the agent to miss its store' });
    expect(await get('/readyz')).toBe('flanneld is ready 200');
  });

  test('a health port in use: one line, exit 1, and no lease was taken', async () => {
    const listen = "require('http').createServer().listen(8081, '127.0.0.1', () => console.log('LISTENING'))";
    const holder = a.ns.spawn(process.execPath, ['-e', listen]);
    receivers.push(holder);
    await holder.output(/LISTENING/);
    const finished = await bed.start(a, '--healthz-port=8081').finished;
    expect(finished.code).toBe(1);
    expect(errorsOf(finished)).toEqual([
      'cannot serve health checks on 0.0.0.0:8081: the port is in use (see: ss -tlnp); give another --healthz-port',
    ]);
    expect([await bed.leases(), await links(a)]).toEqual([[], ['eth0', 'lo']]);
  });

  test('SIGHUP follows the log level, restores the subnet file, and says what needs a restart', async () => {
    const variables = join(a.run, 'podwire.env');
    await writeFile(variables, 'PODWIRE_LOG_LEVEL=info\n');
    const agent = await bed.startReady(a, `--environment-file=${variables}`);
    const before = await subnetEnv(a);
    await writeFile(variables, 'PODWIRE_LOG_LEVEL=debug\nFLANNELD_PUBLIC_IP=10.77.0.9\nPODWIRE_WORKERS=2\n');
    await config('{"Network":"10.42.0.0/16","SubnetLen":26,"Backend":{"Type":"udp"}}');
    await writeFile(a.subnetFile, 'somebody else was here\n');
    const reload = async (): Promise<string> => {
      const from = agent.stderr.length;
      agent.child.kill('SIGHUP');
      await until(() => agent.stderr.slice(from).includes('the configuration was read again'), { what: 'the reload' });
      return agent.stderr.slice(from);
    };
    const said = await reload();
    expect(said).toMatch(/"before":"info","now":"debug","msg":"the log level has changed"/);
    expect(said).toMatch(/"settings":"--public-ip","msg":"settings have changed: restart the agent to follow them"/);
    expect(said).toMatch(/"changed":"subnetLen 24 -> 26[^\n]*it counts when a lease is acquired"/);
    expect(await subnetEnv(a)).toBe(before);
    await config('{"Network"');
    await writeFile(variables, 'PODWIRE_LOG_LEVEL=shouting\n');
    const refused = await reload();
    expect(refused).toMatch(/"level":"error"[^\n]*PODWIRE_LOG_LEVEL \\"shouting\\" is not one of/);
    expect(refused).toMatch(/"level":"error"[^\n]*the network config cannot be read again[^\n]*not valid JSON/);
    await writeFile(variables, 'PODWIRE_LOG_LEVEL=warn\n');
    agent.child.kill('SIGHUP');
    await until(async () => !/"level":"info"/.test(await silence(agent)), { what: 'quiet' });
    expect((await agent.stop()).code).toBe(0);
  });

  /** What one more reload says. */
  async function silence(agent: Process): Promise<string> {
    const from = agent.stderr.length;
    await rm(a.subnetFile, { force: true });
    agent.child.kill('SIGHUP');
    await until(() => subnetEnv(a).catch(() => undefined), { what: 'the subnet file' });
    return agent.stderr.slice(from);
  }

  test('a SIGHUP while it starts neither kills nor confuses it', async () => {
    const agent = bed.start(a);
    await agent.output(/podwire agent starts/, { from: 'stderr' });
    for (let i = 0; i < 20; i++) agent.child.kill('SIGHUP');
    await ready(agent);
    expect(agent.running).toBe(true);
    expect((await agent.stop()).code).toBe(0);
  });

  test('works with the privileges of the unit in deploy/, and no others', async () => {
    const unit = await readFile(join(root, 'deploy/podwire.service'), 'utf8');
    const capabilities = /^CapabilityBoundingSet=(.*)$/m.exec(unit)?.[1]?.split(' ') ?? [];
    expect(capabilities).toContain('CAP_NET_ADMIN');
    const kept = capabilities.map((name) => `+${name.replace(/^CAP_/, '').toLowerCase()}`).join(',');
    const wrapper = ['setpriv', '--no-new-privs', `--bounding-set=-all,${kept}`, '--inh-caps=-all'];
    await mkdir(a.state, { recursive: true });
    const agent = bed.startIn(a, { wrapper }, '--healthz-port=80');
    await ready(agent);
    expect(await readFile(`/proc/${agent.pid}/status`, 'utf8')).toMatch(/NoNewPrivs:\t1/);
    expect(agent.stderr).not.toMatch(/"level":"(warn|error)"/);
    expect((await agent.stop()).code).toBe(0);
  });
});
