// @ts-check
/**
 * wireguard-go: WireGuard in user space, with its TUN and UDP offloads. Encrypts, unlike the others; nothing of it can be
 * switched off. Configured over its own socket (https://www.wireguard.com/xplatform/), so that `wg` is not needed.
 */
import { generateKeyPairSync } from 'node:crypto';
import { connect } from 'node:net';
import { join } from 'node:path';
import { BenchError, Daemon, run, waitFor } from '../lib/process.mjs';
import { innerMtu, ipBatch } from '../lib/topology.mjs';
import { findProgram, missingProgram, startingDaemons, stopAll } from './contender.mjs';

const PORT = 51820;
const SOCKET_DIRECTORY = '/var/run/wireguard';

/** A Curve25519 key pair, in the lower-case hexadecimal of the configuration protocol. */
function keyPair() {
  const { privateKey } = generateKeyPairSync('x25519');
  const { d = '', x = '' } = privateKey.export({ format: 'jwk' });
  /** @param {string} text */
  const hex = (text) => Buffer.from(text, 'base64url').toString('hex');
  return { privateKey: hex(d), publicKey: hex(x) };
}

/**
 * @param {string} path
 * @param {readonly string[]} lines
 */
async function configure(path, lines) {
  /** @type {string} */
  const answer = await new Promise((resolve, reject) => {
    const socket = connect(path, () => socket.end(`set=1\n${lines.join('\n')}\n\n`));
    let text = '';
    socket.setEncoding('utf8');
    socket.setTimeout(5000, () => socket.destroy(new Error('no answer within 5 s')));
    socket.on('data', (part) => (text += part));
    socket.on('error', (error) => reject(new BenchError(`${path}: ${error.message}`)));
    socket.on('close', () => resolve(text));
  });
  if (!/^errno=0$/m.test(answer)) throw new BenchError(`${path} refused its configuration: ${answer.trim()}`);
}

/**
 * True once the socket accepts connections.
 * @param {string} path
 * @returns {Promise<boolean>}
 */
function listens(path) {
  return new Promise((resolve) => {
    const socket = connect(path);
    socket.on('connect', () => {
      socket.destroy();
      resolve(true);
    });
    socket.on('error', () => resolve(false));
  });
}

/** @type {import('./contender.mjs').Contender} */
export const wireguardGo = {
  name: 'wireguard-go',
  about: 'WireGuard in user space, with offloads; encrypts',
  measures: ['throughput', 'pps', 'latency'],
  available: async () => {
    const program = findProgram('wireguard-go');
    if (program === undefined) return missingProgram('wireguard-go');
    const { stdout, stderr } = await run([program, '--version'], { allowFailure: true });
    return { version: `${stdout}${stderr}`.trim().split('\n', 1)[0] ?? '' };
  },
  start: (topology, { workDir, signal }) =>
    startingDaemons(async (daemons) => {
      const keys = topology.hosts.map(keyPair);
      const sides = topology.hosts.map((host, index) => ({
        host,
        own: /** @type {ReturnType<typeof keyPair>} */ (keys[index]),
        peer: topology.hosts[1 - index] ?? host,
        peerKey: keys[1 - index]?.publicKey ?? '',
        // The socket's directory is shared by all namespaces: the name must be this run's own.
        device: `pwb${process.pid}${index + 1}`,
      }));
      for (const { host, own, peer, peerKey, device } of sides) {
        const daemon = new Daemon(
          `wireguard-go on ${host.netns}`,
          [findProgram('wireguard-go') ?? 'wireguard-go', '-f', device],
          {
            namespace: host.netns,
            logFile: join(workDir, `${device}.log`),
          },
        );
        daemons.push(daemon);
        const socket = `${SOCKET_DIRECTORY}/${device}.sock`;
        await waitFor(`wireguard-go's ${socket}`, () => listens(socket), { signal, alive: [daemon] });
        await configure(socket, [
          `private_key=${own.privateKey}`,
          `listen_port=${PORT}`,
          `public_key=${peerKey}`,
          `endpoint=${peer.address}:${PORT}`,
          `allowed_ip=${peer.subnet}`,
        ]);
        await ipBatch(host.netns, [
          `link set ${device} mtu ${innerMtu} up`,
          `address add ${host.subnet.replace(/\/\d+$/, '')}/32 dev ${device}`,
          `route add ${peer.subnet} dev ${device}`,
        ]);
      }
      return { daemons, stop: () => stopAll(daemons) };
    }),
};
