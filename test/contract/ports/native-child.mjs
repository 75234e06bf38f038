/**
 * native-child.mjs TUN-RUNG UDP-RUNG: runs the port contract on native ports, in a namespace that native.test.ts has
 * prepared. Prints one JSON line a case, {name, message} (message is empty when it held), then {packets, decisions}.
 */
import { packetPortContract } from '../../../dist/testing.js';
import { delivered, openNativeLink } from './native-link.mjs';

const [tun, udp] = process.argv.slice(2);
const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);
for (const { name, run } of packetPortContract((outer, format) => openNativeLink(outer, { tun, udp, format }))) {
  let message = '';
  try {
    await run();
  } catch (error) {
    message = error.stack ?? String(error);
  }
  say({ name, message });
}
say(delivered);
