// A scheduler for mlxrt: continuous batching, chunked prefill beside decodes, two steps in flight.
//
//   node scheduler.mjs ADDRESS < prompts.json       {"prompts": [[1, 2, 3]], "tokens_max": 16, "stop_token_ids": []}
//   node scheduler.mjs ADDRESS 16 1,2,3 4,5         the same: new tokens at most, then one prompt of token ids each
//
// Prints {"tokens": [[...]], "steps": n, "inflight_steps_max": n}. The blocks of a sequence are set aside when it starts.
import { readFileSync } from 'node:fs';
import { randomUUID } from 'node:crypto';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import grpc from '@grpc/grpc-js';
import protoLoader from '@grpc/proto-loader';

const [address, tokensMax, ...listed] = process.argv.slice(2);
const input = tokensMax === undefined
  ? JSON.parse(readFileSync(0, 'utf8'))
  : { prompts: listed.map((ids) => ids.split(',').map(Number)), tokens_max: Number(tokensMax) };

const protos = process.env.MLXRT_PROTOS ?? fileURLToPath(new URL('../../protos', import.meta.url));
const files = ['session', 'execution', 'model'].map((noun) => `mlxrt/v1/${noun}_service.proto`);
const loaded = protoLoader.loadSync(files, { includeDirs: [protos], keepCase: true, longs: Number, defaults: true, oneofs: true });
const v1 = grpc.loadPackageDefinition(loaded).mlxrt.v1;
const connect = (Service) => new Service(address, grpc.credentials.createInsecure());
const [sessions, execution, models] = [v1.SessionService, v1.ExecutionService, v1.ModelService].map(connect);
const call = (client, rpc, request) => promisify(client[rpc].bind(client))(request);

const { limits } = await call(models, 'GetServerInfo', {});
const { block_size: blockSize, groups } = await call(models, 'GetModelInfo', {});
const { session } = await call(sessions, 'OpenSession', { request_id: randomUUID(), client_name: 'node scheduler' });
const counts = groups.map(({ group, block_count }) => ({ group, count: block_count - 1 }));
const leased = await call(execution, 'AllocateBlocks', { session, request_id: randomUUID(), counts });
const free = leased.blocks.map(({ group, block_ids }) => ({ group, block_ids: [...block_ids] }));

const stop = new Set(input.stop_token_ids ?? []);
const all = input.prompts.map((prompt, index) => ({ id: index + 1, prompt, tokens: [], position: 0, sampled: 0, done: false }));
const [waiting, running, released, inflight] = [[...all], [], [], []]; // inflight: what each unanswered step is about
const summary = { steps: 0, inflight_steps_max: 0 };
const stream = execution.Execute();
const finished = new Promise((resolve, reject) => stream.on('end', resolve).on('error', reject));

function plan() {
  const step = { session, step_number: summary.steps + 1, release_sequence_ids: released.splice(0), new_sequences: [], decode_sequence_ids: [], items: [] };
  const about = { column: [], items: [] };
  let rows = Math.min(256, limits.max_step_rows);
  for (const one of running.filter(({ position, prompt, sampled }) => position >= prompt.length && sampled < input.tokens_max)) {
    step.decode_sequence_ids.push(one.id);
    about.column.push(one);
    [one.position, one.sampled, rows] = [one.position + 1, one.sampled + 1, rows - 1];
  }
  while (waiting.length && running.length < Math.min(rows, limits.max_step_sequences)) {
    const blocks = Math.ceil((waiting[0].prompt.length + input.tokens_max - 1) / blockSize);
    if (free.some(({ block_ids }) => block_ids.length < blocks)) break;
    const one = waiting.shift();
    one.tables = free.map(({ group, block_ids }) => ({ group, block_ids: block_ids.splice(0, blocks) }));
    step.new_sequences.push({ sequence_id: one.id, prompt_token_ids: one.prompt, tables: one.tables });
    running.push(one);
  }
  for (const one of running.filter(({ position, prompt }) => position < prompt.length)) {
    const row_count = Math.min(rows, one.prompt.length - one.position);
    if (row_count === 0) break;
    const sample = one.position + row_count === one.prompt.length;
    step.items.push({ sequence_id: one.id, row_count, registered: {}, sample });
    about.items.push(one);
    [one.position, one.sampled, rows] = [one.position + row_count, one.sampled + sample, rows - row_count];
  }
  return about.column.length + about.items.length ? [step, about] : null;
}

function receive(one, token) {
  if (one.done) return; // the row behind a stop token
  one.tokens.push(token);
  one.done = stop.has(token) || one.tokens.length === input.tokens_max;
  if (!one.done) return;
  running.splice(running.indexOf(one), 1);
  released.push(one.id);
  one.tables.forEach(({ block_ids }, index) => free[index].block_ids.push(...block_ids));
}

function pump() {
  while (inflight.length < 2) {
    const planned = plan();
    if (planned === null) break;
    stream.write({ step: planned[0] });
    inflight.push(planned[1]);
    summary.steps += 1;
    summary.inflight_steps_max = Math.max(summary.inflight_steps_max, inflight.length);
  }
  if (inflight.length === 0) stream.end();
}

stream.on('data', ({ step, error }) => {
  const failure = error ?? step.error ?? step.results.find((result) => result.error)?.error;
  if (failure) return stream.destroy(new Error(failure.message));
  const { column, items } = inflight.shift();
  step.token_ids.forEach((token, index) => receive(column[index], token));
  step.results.slice(step.results.length - items.length).forEach(({ token_ids }, index) => token_ids.forEach((token) => receive(items[index], token)));
  pump();
});
pump();
await finished;
await call(sessions, 'CloseSession', { session });
[sessions, execution, models].forEach((client) => client.close());
console.log(JSON.stringify({ tokens: all.map(({ tokens }) => tokens), ...summary }));
