import { chmod, mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { readAgentConfig } from '../../../src/agent/config.js';
import { normaliseArguments } from '../../../src/agent/flags.js';
import { parseDotenv } from '../../../src/host/subnet-env.js';
import { cli, root, run } from '../../support/process.js';
import { missing } from '../../support/requires.js';

const deployed = (name: string): Promise<string> => readFile(join(root, 'deploy', name), 'utf8');

describe.skipIf(missing({ commands: ['systemd-analyze'] }))('units', () => {
  let directory: string;

  beforeAll(async () => {
    directory = await mkdtemp(join(tmpdir(), 'pwag-units-'));
    await mkdir(join(directory, 'docker.service.d'));
    const program = join(directory, 'program');
    await writeFile(program, '#!/bin/sh\n');
    await chmod(program, 0o755);
    const put = async (name: string, text: string): Promise<void> =>
      writeFile(join(directory, name), text.replaceAll(/\/usr\/(?:local\/bin\/podwire|bin\/dockerd)/g, program));
    await put('podwire.service', await deployed('podwire.service'));
    await put('docker.service.d/podwire.conf', await deployed('docker.service.d/podwire.conf'));
    await put('docker.service', '[Service]\nType=notify\nExecStart=/usr/bin/dockerd -H fd://\n');
  });

  afterAll(() => rm(directory, { recursive: true }));

  test.each(['podwire.service', 'docker.service'])('systemd has nothing to say about %s', async (name) => {
    const { code, stdout, stderr } = await run('systemd-analyze', ['verify', '--man=no', join(directory, name)]);
    const own = `${stdout}${stderr}`.split('\n').filter((line) => line.includes(directory) || line.includes(name));
    expect([code, own]).toEqual([0, []]);
  });

  test('a wrong line would be seen', async () => {
    const wrong = join(directory, 'wrong.service');
    await writeFile(
      wrong,
      `${await readFile(join(directory, 'podwire.service'), 'utf8')}\n[Service]\nProtectSystems=strict\n`,
    );
    const { stdout, stderr } = await run('systemd-analyze', ['verify', '--man=no', wrong]);
    expect(`${stdout}${stderr}`).toContain('ProtectSystems');
  });

  test('podwire.service exposes little', async () => {
    const path = join(directory, 'podwire.service');
    const { stdout } = await run('systemd-analyze', ['security', '--offline=true', '--no-pager', path]);
    const exposure = Number(/exposure level for podwire\.service: ([\d.]+)/.exec(stdout)?.[1]);
    expect(exposure).toBeLessThan(3);
  });
});

test('the agent takes the arguments of the unit', async () => {
  const line = /^ExecStart=\/usr\/local\/bin\/podwire agent (.*)$/m.exec(await deployed('podwire.service'))?.[1] ?? '';
  expect(normaliseArguments(line.split(' '))).toEqual(['--environment-file=-/etc/podwire/podwire.env']);
});

test('every variable in the sample settings is one, and all of them together work', async () => {
  const sample = (await deployed('podwire.env')).replaceAll(/^#(?=[A-Z]+_)/gm, '');
  const variables = Object.fromEntries(parseDotenv(sample));
  expect(Object.keys(variables).length).toBeGreaterThan(4);
  const { warnings, ...config } = readAgentConfig({}, variables);
  expect(warnings).toEqual([]);
  const usual = readAgentConfig({}, {});
  expect(config.health).toEqual({ host: '0.0.0.0', port: 8081 });
  expect(config.interface).not.toEqual(usual.interface);
  expect(config.ipMasq).toBe(true);
});

describe.skipIf(missing({ files: ['dist/bundle/main.cjs'] }))('podwire docker-opts', () => {
  let directory: string;
  beforeAll(async () => {
    directory = await mkdtemp(join(tmpdir(), 'pwag-docker-'));
    await writeFile(
      join(directory, 'subnet.env'),
      'FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.74.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n',
    );
  });
  afterAll(() => rm(directory, { recursive: true }));

  const podwire = (args: readonly string[], environment: NodeJS.ProcessEnv = {}) =>
    run(process.execPath, [cli, 'docker-opts', ...args], { env: { ...process.env, ...environment } });

  test('a shell and systemd read what it writes', async () => {
    const file = join(directory, 'docker_opts.env');
    const finished = await podwire(['-f', join(directory, 'subnet.env'), '-d', file, '-k', 'OPTS'], {
      OPTS: '--debug',
    });
    expect([finished.code, finished.stdout, finished.stderr]).toEqual([0, '', '']);
    const { stdout } = await run('sh', ['-c', `. ${file}; printf '%s|' $OPTS "$DOCKER_OPT_IPMASQ"`]);
    expect(stdout).toBe('--debug|--bip=10.1.74.1/24|--ip-masq=false|--mtu=1472|--ip-masq=false|');
    const printed = await podwire(['-f', join(directory, 'subnet.env'), '-d', '-', '-cm']);
    expect(printed.stdout).toBe('DOCKER_OPTS=" --bip=10.1.74.1/24 --mtu=1472"\n');
  });

  test.each([
    [
      ['-f', '/nonexistent/subnet.env'],
      1,
      /cannot read the subnet file \/nonexistent\/subnet\.env: .*start the agent first/,
    ],
    [['-k', 'A-B'], 2, /-k "A-B" is no name of a variable/],
    [['-x'], 2, /unknown option '-x'/],
    [['now'], 2, /too many arguments/],
  ])('%j: exit code %d', async (args, code, message) => {
    const finished = await podwire(args);
    expect([finished.code, finished.stdout]).toEqual([code, '']);
    expect(finished.stderr).toMatch(message);
    expect(finished.stderr.trim()).not.toContain('\n');
  });
});
