import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { AGENT_NEEDS, AgentBed, type AgentHost, ready, subnetBase, subnetEnv } from '../support/agents.js';
import { EtcdServer, ETCD_PREFIX } from '../support/clusters-etcd.js';
import { cli, type Process } from '../support/process.js';
import { missing } from '../support/requires.js';

const NEEDS = { ...AGENT_NEEDS, commands: ['ip', 'curl'], counterparts: ['etcd-3.6', 'etcdctl'] } as const;
const GOOD = '{"Network":"10.42.0.0/16","Backend":{"Type":"udp"}}';

/** The arguments are those of a flanneld unit, with one dash or two, and what a second agent on a machine needs. */
describe.skipIf(missing(NEEDS))('an agent with flanneld’s arguments and etcd', () => {
  let bed: AgentBed;
  let a: AgentHost;
  let etcd: EtcdServer;
  let started: Process[] = [];

  beforeAll(async () => {
    bed = await AgentBed.create();
    ({ a } = bed);
  });

  afterAll(() => bed[Symbol.asyncDispose]());

  beforeEach(async () => {
    await bed.reset();
    etcd = new EtcdServer(a.ns, a.underlay, join(bed.store, 'etcd'));
  });

  afterEach(async () => {
    for (const agent of started) await agent[Symbol.asyncDispose]();
    started = [];
    await etcd.stop('SIGKILL');
  });

  function start(args: readonly string[], environment: NodeJS.ProcessEnv = {}): Process {
    const own = [`--subnet-file=${a.subnetFile}`, `--state-dir=${a.state}`, '--log-format=json', '--workers=1'];
    const agent = a.ns.spawn(process.execPath, [cli, 'agent', ...own, ...args], {
      env: { ...process.env, ...environment },
    });
    started.push(agent);
    return agent;
  }

  const get = async (path: string): Promise<string> => {
    const format = ['-s', '-w', ' %{http_code}', '--max-time', '2'];
    return (await a.ns.run('curl', [...format, `http://127.0.0.1:8081${path}`])).stdout;
  };

  const count = (agent: Process, text: string): number => agent.stderr.split(text).length - 1;

  test('waits for etcd and for a config that is valid, tells every reason once, and answers health checks', async () => {
    const agent = start(['-etcd-endpoints', etcd.url, '-iface', 'eth0', '-healthz-port=8081', '-v=1']);
    await agent.output(/"msg":"waiting for the store/, { from: 'stderr' });
    const waiting = ['flanneld is running 200', 'flanneld is not ready yet 503'];
    expect([await get('/healthz'), await get('/readyz')]).toEqual(waiting);
    await etcd.start();
    await agent.output(/"msg":"waiting for a network config: flannel config not found/, { from: 'stderr' });
    await etcd.setConfig('{"Network":"10.42.0.0/16","SubnetLen":31}');
    await agent.output(/SubnetLen must be less than \/31/, { from: 'stderr' });
    await etcd.setConfig('{"Network"');
    await agent.output(/not valid JSON/, { from: 'stderr' });
    expect([await get('/healthz'), await get('/readyz')]).toEqual(waiting);
    await etcd.setConfig(GOOD);
    await ready(agent);
    expect(await get('/readyz')).toBe('flanneld is ready 200');
    for (const reason of ['flannel config not found', 'SubnetLen must be less', 'not valid JSON']) {
      expect([reason, count(agent, reason)]).toEqual([reason, 1]);
    }
    const base = await subnetBase(a);
    const key = `${ETCD_PREFIX}/subnets/${base}.0-24`;
    expect(await etcd.ctl('get', '--print-value-only', key)).toContain(`"PublicIP":"${a.underlay}","PublicIPv6":null`);
    expect(await subnetEnv(a)).toBe(
      `FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=${base}.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n`,
    );
    expect((await agent.stop()).code).toBe(0);
    const again = start([], { FLANNELD_ETCD_ENDPOINTS: `http://127.0.0.1:9,${etcd.url}`, FLANNELD_IFACE: 'eth0' });
    await ready(again);
    expect(await subnetBase(a)).toBe(base);
  });

  test('no secret is printed: not by the log at its loudest, not by status and metrics, not at a reload', async () => {
    const secrets = ['hunter2-of-etcd', 'MIIEsecretkey'];
    await etcd.start();
    await etcd.setConfig(GOOD);
    for (const command of ['user add root:hunter2-of-etcd', 'user grant-role root root', 'auth enable']) {
      await etcd.ctl(...command.split(' '));
    }
    const variables = join(a.run, 'secret.env');
    await writeFile(variables, 'FLANNELD_ETCD_PASSWORD=hunter2-of-etcd\n');
    const flags = [
      `--etcd-endpoints=${etcd.url}`,
      '--etcd-username=root',
      '--iface=eth0',
      '-v=10',
      '--healthz-port=8081',
    ];
    const agent = start([...flags, `--environment-file=${variables}`]);
    await ready(agent);
    await writeFile(variables, 'FLANNELD_ETCD_PASSWORD=hunter2-of-etcd-changed\n');
    agent.child.kill('SIGHUP');
    await agent.output(/"settings":"--etcd-password"[^\n]*restart the agent/, { from: 'stderr' });
    const shown = [
      await a.ns.ok(process.execPath, [cli, 'status', '--json', `--subnet-file=${a.subnetFile}`]),
      await get('/metrics'),
      await get('/readyz?verbose'),
    ];
    await agent.stop();
    const wrong = start([...flags, '--etcd-password=hunter2-of-etcd-wrong']);
    await wrong.output(/"level":"(warn|error)"/, { from: 'stderr' });
    await wrong.stop();
    const away = start([
      '--etcd-endpoints=http://127.0.0.1:9',
      '--etcd-username=root',
      '--etcd-password=hunter2-of-etcd',
    ]);
    await away.output(/waiting for the store/, { from: 'stderr' });
    const argv = await readFile(`/proc/${away.pid}/cmdline`, 'utf8');
    expect(argv).toMatch(/^podwire agent \(arguments hidden/);
    shown.push(argv);
    const key = join(a.run, 'key.pem');
    await writeFile(key, '-----BEGIN PRIVATE KEY-----\nMIIEsecretkey\n-----END PRIVATE KEY-----\n');
    const tls = [`--etcd-certfile=${key}`, `--etcd-keyfile=${key}`, '--etcd-endpoints=https://127.0.0.1:9'];
    const broken = await start([...tls, '--iface=eth0', '--log-level=debug'], { PODWIRE_DEBUG: '1' }).finished;
    expect(broken.code).toBe(1);
    expect(broken.stderr).toMatch(/key\.pem/);
    for (const text of [agent.stderr, agent.stdout, wrong.stderr, broken.stderr, ...shown]) {
      for (const secret of secrets) expect(text).not.toContain(secret);
    }
  });
});
