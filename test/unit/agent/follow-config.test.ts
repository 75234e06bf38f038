import { describe, expect, test } from 'vitest';
import { configChanges, ConfigFollower } from '../../../src/agent/follow-config.js';
import { parseNetworkConfig } from '../../../src/control/network-config.js';
import { MemoryStoreServer } from '../../../src/control/stores/memory.js';

const UDP = '{"Network":"10.42.0.0/16","Backend":{"Type":"udp"}}';
const VXLAN = '{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan"}}';

describe('configChanges', () => {
  test.each([
    [UDP, VXLAN, ['backend {"Type":"udp"} -> {"Type":"vxlan"}']],
    [UDP, '{"Network":"10.43.0.0/16","Backend":{"Type":"udp"}}', ['network 10.42.0.0/16 -> 10.43.0.0/16']],
    [UDP, '{"Network":"10.42.0.0/16","SubnetLen":25,"Backend":{"Type":"udp"}}', []],
    [UDP, '{"backend":{"type":"UDP"},"network":"10.42.7.0/16"}', []],
  ])('%s, then %s', (before, after, changes) => {
    expect(configChanges(parseNetworkConfig(before), parseNetworkConfig(after))).toEqual(changes);
  });

  test('a secret is a change and is not shown', () => {
    const config = (psk: string) => parseNetworkConfig(`{"Network":"10.42.0.0/16","Backend":{"Type":"wireguard","PSK":"${psk}"}}`); // prettier-ignore
    const changes = configChanges(config('one'), config('two'));
    expect(changes).toEqual(['backend (a secret)']);
  });
});

describe('ConfigFollower', () => {
  function follower(config: string) {
    const server = new MemoryStoreServer({ config: UDP });
    const followed: string[][] = [];
    const said: string[] = [];
    const say = (_fields: object, message: string): void => void said.push(message);
    const current = parseNetworkConfig(UDP);
    server.config = config;
    const options = {
      store: server.open({ name: 'us' }),
      log: { debug: say, info: say, warn: say, error: say },
      current: () => current,
      onChange: (changes: readonly string[]) => void followed.push([...changes]),
      periodMs: 1_000_000,
    };
    return { server, followed, said, follower: new ConfigFollower(options) };
  }

  test('a change counts when it is found twice, or at once when somebody is sure', async () => {
    const { follower: one, followed, said } = follower(VXLAN);
    expect(await one.look()).toBe(false);
    expect(said).toEqual(['the network config has changed']);
    expect(await one.look()).toBe(true);
    expect(followed).toHaveLength(1);
    expect(await one.look(true)).toBe(true);
    expect(followed).toHaveLength(2);
    one.close();
  });

  test('a change that goes on changing waits, one that is taken back is none', async () => {
    const { follower: one, followed, server } = follower(VXLAN);
    await one.look();
    server.config = VXLAN.replace('"vxlan"', '"host-gw"');
    expect(await one.look()).toBe(false);
    server.config = UDP;
    expect(await one.look()).toBe(false);
    server.config = VXLAN.replace('"vxlan"', '"host-gw"');
    expect(await one.look()).toBe(false);
    expect(followed).toEqual([]);
    one.close();
  });

  test('a config that cannot be read is told once and not followed', async () => {
    const { follower: one, followed, said } = follower('{"Network":');
    expect(await one.look()).toBe(false);
    expect(await one.look(true)).toBe(false);
    expect(followed).toEqual([]);
    expect(said).toEqual([expect.stringMatching(/cannot be read, going on as before: /)]);
    one.close();
  });
});
