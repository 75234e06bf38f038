// Runs a PathMtuTable with the real raw-socket inside a namespace, for pmtu.test.ts.
//
//   node pmtu-child.mjs watch '{"probe":{…},"underlayMtu":1500}' ADDRESS…   one JSON line a change; a line on stdin asks
//                                                                       for {stats, paths}, its end for the end
//   node pmtu-child.mjs send ADDRESS HEX [COUNT]                            sends a raw ICMP (by family) message
//   node pmtu-child.mjs open [worker]                                       tries to open the prober, says what came
import { createInterface } from 'node:readline';
import { Worker, isMainThread, parentPort } from 'node:worker_threads';
import { PathMtuTable } from '../../dist/dataplane/pmtu.js';
import { openRawSocketProber } from '../../dist/dataplane/pmtu-prober.js';
import { Address } from '../../dist/net/prefix.js';

const print = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);
const [command, ...args] = process.argv.slice(2);

async function watch([options, ...addresses]) {
  const table = new PathMtuTable({
    ...JSON.parse(options),
    onChange: (address, mtu) => print({ change: String(address), mtu }),
  });
  for (const address of addresses) table.watch(Address.parse(address));
  for await (const _ of createInterface({ input: process.stdin })) {
    print({ stats: table.stats(), paths: addresses.map((address) => table.get(Address.parse(address))) });
  }
  table.close();
}

async function send([to, hex, count = '1']) {
  const { default: raw } = await import('raw-socket');
  const six = to.includes(':');
  const socket = raw.createSocket({
    protocol: six ? 58 : 1,
    addressFamily: six ? raw.AddressFamily.IPv6 : raw.AddressFamily.IPv4,
  });
  const message = Buffer.from(hex, 'hex');
  for (let i = 0; i < Number(count); i++) {
    await new Promise((resolve, reject) => {
      socket.send(message, 0, message.length, to, (error) => (error ? reject(error) : resolve()));
    });
  }
  socket.close();
}

async function open() {
  try {
    const prober = await openRawSocketProber(() => undefined);
    prober.close();
    return { opened: true };
  } catch (error) {
    return { opened: false, code: error.code, message: error.message };
  }
}

if (!isMainThread) {
  parentPort.postMessage(await open());
} else if (command === 'watch') {
  await watch(args);
} else if (command === 'send') {
  await send(args);
} else if (args[0] === 'worker') {
  new Worker(new URL(import.meta.url)).once('message', print);
} else {
  print(await open());
}
