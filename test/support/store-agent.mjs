/**
 * One host in a test of the directory store with real processes: runs the built store and talks to its parent by IPC.
 *
 *     node store-agent.mjs PATH PUBLIC-IP race|renew|churn|expired
 *
 * race: on 'go' acquires once and reports. The others acquire, report, and then write until they are killed:
 * renew and expired prolong the lease without end (the latter always as one that has run out), churn gives it
 * back and takes another, each step with the parent's consent.
 */
import { directoryStore } from '../../dist/control/stores/directory.js';
import { leaseKey } from '../../dist/control/lease-key.js';
import { Address } from '../../dist/net/prefix.js';

const [path, publicIp, mode] = process.argv.slice(2);
const store = directoryStore(path);
const request = {
  attributes: { publicIp: Address.parse(publicIp), backendType: '' },
  owner: `agent-${publicIp}`,
  // A second of life is less than the tolerance for clocks: every renewal has to take the lease anew.
  ttlMs: mode === 'expired' ? 1000 : 3_600_000,
};

/** Sends, and waits for the parent's answer. */
function ask(message) {
  return new Promise((resolve) => {
    process.once('message', resolve);
    process.send(message);
  });
}

process.on('disconnect', () => process.exit(1));
await ask({ kind: 'ready' });
try {
  let lease = await store.acquire(request);
  await ask({ kind: 'acquired', key: leaseKey(lease) });
  for (;;) {
    if (mode === 'race') break;
    if (mode === 'churn') {
      await ask({ kind: 'releasing', key: leaseKey(lease) });
      await store.release(lease);
      lease = await store.acquire(request);
      await ask({ kind: 'acquired', key: leaseKey(lease) });
    } else {
      lease = await store.renew(lease);
    }
  }
} catch (error) {
  await ask({ kind: 'failed', code: error.code, message: error.message });
}
process.disconnect();
