import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { decode, encode, type Schema } from '../../../src/control/stores/etcd/protobuf.js';

const SCHEMA: Schema = {
  messages: {
    Inner: { a: [1, 'int64'] },
    All: {
      int: [1, 'int64'],
      text: [2, 'string'],
      inner: [3, 'Inner'],
      flag: [4, 'bool'],
      data: [5, 'bytes'],
      colour: [6, 'Colour'],
      many: [7, 'Inner', 'repeated'],
      blobs: [8, 'bytes', 'repeated'],
      perhaps: [9, 'Inner', 'optional'],
      natural: [300, 'uint64'],
    },
    Newer: { future: [12, 'string'], more: [13, 'Inner'], int: [1, 'int64'], number: [14, 'uint64'] },
  },
  enums: { Colour: ['RED', 'GREEN'] },
};
const NOTHING = {
  int: '0',
  text: '',
  inner: null,
  flag: false,
  data: Buffer.alloc(0),
  colour: 'RED',
  many: [],
  blobs: [],
  natural: '0',
};
const hex = (bytes: Buffer): string => bytes.toString('hex');

describe('protocol buffers', () => {
  // The examples of the format's specification, and its limits.
  it.each([
    [{ int: 150 }, '089601'],
    [{ int: '0' }, '0800'],
    [{ int: -1 }, '08ffffffffffffffffff01'],
    [{ int: '9223372036854775807' }, '08ffffffffffffffff7f'],
    [{ natural: '18446744073709551615' }, 'e012ffffffffffffffffff01'],
    [{ text: 'testing' }, '120774657374696e67'],
    [{ inner: { a: 150 } }, '1a03089601'],
    [{ inner: {} }, '1a00'],
    [{ flag: true, colour: 'GREEN' }, '20013001'],
    [{ many: [{ a: 1 }, {}], blobs: [Buffer.from('x')] }, '3a0208013a00420178'],
    [{}, ''],
  ])('%j is %s', (value, bytes) => {
    expect(hex(encode(SCHEMA, 'All', value))).toBe(bytes);
  });

  it('fills in what is not there, but not what is optional', () => {
    expect(decode(SCHEMA, 'All', Buffer.alloc(0))).toEqual(NOTHING);
    expect(decode(SCHEMA, 'All', Buffer.from('4a00', 'hex'))).toEqual({ ...NOTHING, perhaps: { a: '0' } });
  });

  it('skips fields that it does not know, and the last of a repeated plain field counts', () => {
    const newer = encode(SCHEMA, 'Newer', { future: 'x', more: { a: 1 }, int: 7, number: '99' });
    const fixed = Buffer.from('7901020304050607087d010203040808', 'hex');
    expect(decode(SCHEMA, 'All', Buffer.concat([newer, fixed]))).toEqual({ ...NOTHING, int: '8' });
  });

  it.each(['08', '0896', '12', '1207746573', '1a030896', '08ffffffffffffffffffffff01', '0b'])(
    'refuses %s, which ends early or is none',
    (bytes) => {
      expect(() => decode(SCHEMA, 'All', Buffer.from(bytes, 'hex'))).toThrow(RangeError);
    },
  );

  it('reads what it writes', () => {
    const int64 = fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }).map(String);
    const inner = fc.record({ a: int64 });
    const bytes = fc.uint8Array().map((each) => Buffer.from(each));
    const message = fc.record({
      int: int64,
      text: fc.string({ unit: 'grapheme' }),
      inner,
      flag: fc.boolean(),
      data: bytes,
      colour: fc.constantFrom('RED', 'GREEN'),
      many: fc.array(inner),
      blobs: fc.array(bytes),
      perhaps: inner,
      natural: fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }).map(String),
    });
    fc.assert(
      fc.property(message, (value) => {
        expect(decode(SCHEMA, 'All', encode(SCHEMA, 'All', value))).toEqual(value);
      }),
    );
  });

  it('never fails in another way, whatever arrives', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 64 }), (bytes) => {
        try {
          decode(SCHEMA, 'All', Buffer.from(bytes));
        } catch (error) {
          expect(error).toBeInstanceOf(RangeError);
        }
      }),
      { numRuns: 2000 },
    );
  });
});
