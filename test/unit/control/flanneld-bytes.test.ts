import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { expectPodwireAgrees, type FlanneldBytes, RECORDED } from '../../support/flanneld-bytes.js';
import { root } from '../../support/process.js';

const vectors = JSON.parse(readFileSync(`${root}/test/vectors/flanneld.json`, 'utf8')) as FlanneldBytes[];

test('there is a recording of every config', () => {
  expect(vectors.map(({ name, config }) => [name, config])).toEqual(
    Object.entries(RECORDED).map(([name, config]) => [name, JSON.stringify(config)]),
  );
});

test.each(vectors)('what flanneld wrote is what podwire writes: $name', expectPodwireAgrees);
