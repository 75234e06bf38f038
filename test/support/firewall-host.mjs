// A HostFirewall in a process of its own, so that it can live in a network namespace. One JSON object a line on
// standard input: {"id", "call": "open" | "apply" | "stats" | "close", "argument"}; answers and notices go to standard output.
import { createInterface } from 'node:readline';
import { run } from '../../dist/host/exec.js';
import { HostFirewall } from '../../dist/host/firewall/firewall.js';
import { Prefix } from '../../dist/net/prefix.js';

const say = (message) => process.stdout.write(`${JSON.stringify(message)}\n`);
const prefixes = (texts) => texts.map((text) => Prefix.parse(text));
let firewall;

const calls = {
  async open({ previousNetworks = [], ...options }) {
    firewall = await HostFirewall.open({
      ...options,
      previousNetworks: prefixes(previousNetworks),
      runner: run,
      onNotice: (notice) => say({ notice }),
    });
  },
  apply: ({ networks, subnets, ...rest }) =>
    firewall.apply({ ...rest, networks: prefixes(networks), subnets: prefixes(subnets) }),
  stats: () => firewall.stats(),
  close: () => firewall.close(),
};

let work = Promise.resolve();
for await (const line of createInterface({ input: process.stdin })) {
  const { id, call, argument } = JSON.parse(line);
  work = work.then(async () => {
    try {
      say({ id, value: await calls[call](argument) });
    } catch (error) {
      say({ id, error: error.message });
    }
  });
}
await work;
process.exit(0);
