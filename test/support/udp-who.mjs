// udp-who.mjs serve ADDRESS PORT: tells each sender the address it is seen with. udp-who.mjs ask ADDRESS PORT [FROM]: asks, prints.
import { createSocket } from 'node:dgram';

const [mode, address, port, from] = process.argv.slice(2);
const socket = createSocket(address.includes(':') ? 'udp6' : 'udp4');
if (mode === 'serve') {
  socket.on('message', (_, sender) => socket.send(sender.address, sender.port, sender.address));
  socket.bind(Number(port), address, () => console.log('ready'));
} else {
  socket.on('message', (text) => {
    console.log(text.toString());
    process.exit(0);
  });
  socket.on('error', () => undefined);
  socket.bind(0, from, () => {
    const send = () => socket.send('?', Number(port), address, () => undefined);
    send();
    setInterval(send, 200);
  });
  setTimeout(() => process.exit(1), 2_000);
}
