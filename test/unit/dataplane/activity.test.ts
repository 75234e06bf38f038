import { expect, test } from 'vitest';
import { PeerActivity } from '../../../src/dataplane/activity.js';
import { PEER_WORDS } from '../../../src/io/batch.js';

const RX_PACKETS = 2;

function fixture() {
  const workers = [0, 1].map(() => ({ peers: new Float64Array(8 * PEER_WORDS) }));
  let now = 5000;
  const activity = new PeerActivity(workers, 8, () => now);
  return {
    activity,
    receive: (worker: number, host: number) => void (workers[worker]!.peers[host * PEER_WORDS + RX_PACKETS]! += 1),
    forget: (host: number) => workers.forEach(({ peers }) => (peers[host * PEER_WORDS + RX_PACKETS] = 0)),
    pass: (ms: number) => void (now += ms),
  };
}

test('a host is heard when any worker delivered more of it, as of the look that saw it', () => {
  const { activity, receive, pass } = fixture();
  activity.added(1);
  activity.added(2);
  expect([activity.lastHeardMs(1), activity.lastHeardMs(2)]).toEqual([undefined, undefined]);
  receive(0, 1);
  activity.look();
  pass(300);
  receive(1, 2);
  expect([activity.lastHeardMs(1), activity.lastHeardMs(2)]).toEqual([300, 0]);
  pass(1700);
  activity.look();
  expect([activity.lastHeardMs(1), activity.lastHeardMs(2)]).toEqual([2000, 1700]);
  receive(1, 1);
  activity.look();
  expect(activity.lastHeardMs(1)).toBe(0);
});

test('an id that is used again begins as never heard', () => {
  const { activity, receive, forget, pass } = fixture();
  activity.added(1);
  receive(0, 1);
  activity.look();
  forget(1);
  activity.added(1);
  pass(100);
  activity.look();
  expect(activity.lastHeardMs(1)).toBeUndefined();
  receive(0, 1);
  activity.look();
  expect(activity.lastHeardMs(1)).toBe(0);
});
