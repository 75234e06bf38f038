/** A metric as data: its name, its words, and how it is read from the state of the agent. */
import type { OverlayStatus, StoreMetrics } from '../../index.js';
import type { OperationCounts } from '../store-meter.js';
import type { PeerReading } from './accounts.js';

/** What one request sees; read once, so that its metrics agree with each other. */
export interface Reading {
  readonly version: string;
  readonly ready: boolean | undefined;
  readonly overlay: OverlayStatus | undefined;
  readonly store: StoreMetrics;
  readonly operations: Readonly<Record<string, OperationCounts>>;
  readonly peers: PeerReading;
}

export type Labels = Readonly<Record<string, string>>;

export interface Family {
  readonly type: 'counter' | 'gauge';
  readonly name: `podwire_${string}`;
  readonly help: string;
  readonly labels?: readonly string[];
  /** Gives every sample to `add`; the same labels never twice. */
  readonly read: (reading: Reading, add: (value: number, labels?: Labels) => void) => void;
}

/** A sample without labels, absent where `value` is undefined. */
export function single(
  type: Family['type'],
  name: Family['name'],
  help: string,
  value: (reading: Reading) => number | undefined,
): Family {
  return {
    type,
    name,
    help,
    read: (reading, add) => {
      const found = value(reading);
      if (found !== undefined) add(found);
    },
  };
}

/** `requestErrors` as `request_errors`. */
export function snakeCase(name: string): string {
  return name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`).replace(/^_/, '');
}

export const seconds = (date: Date | undefined): number | undefined =>
  date === undefined ? undefined : date.getTime() / 1000;
