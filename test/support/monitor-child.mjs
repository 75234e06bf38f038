// Runs the kernel monitor until it is killed; prints the events of every burst as a line of JSON.
// Usage: node monitor-child.mjs
import { HostMonitor } from '../../dist/host/monitor.js';

const monitor = new HostMonitor({ onNotice: (level, message) => console.log(JSON.stringify({ level, message })) });
monitor.subscribe((events) => {
  const shown = Object.entries(events).map(([key, value]) => [key, value instanceof Set ? [...value] : value]);
  console.log(JSON.stringify(Object.fromEntries(shown)));
});
monitor.listen();
setInterval(() => undefined, 1_000_000);
