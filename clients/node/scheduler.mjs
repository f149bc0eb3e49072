// A scheduler for mlxrt: continuous batching, chunked prefill beside decodes, two steps in flight.
//
//   node scheduler.mjs ADDRESS < FILE           {"prompts": [[1, 2, 3]], "tokens_max": 16, "stop_token_ids": []}
//   node scheduler.mjs ADDRESS 16 1,2,3 4,5     the same: most new tokens, then the token ids of each prompt
//
// Prints {"tokens": [[...]], "steps": n, "inflight_steps_max": n}. A sequence gets all its blocks when it starts.
import { randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import grpc from '@grpc/grpc-js';
import protoLoader from '@grpc/proto-loader';

const [address, most, ...listed] = process.argv.slice(2);
const input = most === undefined ? JSON.parse(readFileSync(0, 'utf8'))
  : { prompts: listed.map((ids) => ids.split(',').map(Number)), tokens_max: Number(most) };

const protos = process.env.MLXRT_PROTOS ?? fileURLToPath(new URL('../../protos', import.meta.url));
const files = ['session', 'execution', 'model'].map((noun) => `mlxrt/v1/${noun}_service.proto`);
const { v1 } = grpc.loadPackageDefinition(protoLoader.loadSync(files, {
  includeDirs: [protos], keepCase: true, longs: Number, defaults: true, oneofs: true,
})).mlxrt;
const connect = (Service) => new Service(address, grpc.credentials.createInsecure());
const [sessions, execution, models] = [v1.SessionService, v1.ExecutionService, v1.ModelService].map(connect);
const call = (client, rpc, request) => promisify(client[rpc].bind(client))(request);

const { limits } = await call(models, 'GetServerInfo', {});
const { block_size, groups } = await call(models, 'GetModelInfo', {});
const { session } = await call(sessions, 'OpenSession', { request_id: randomUUID(), client_name: 'node' });
const counts = groups.map(({ group, block_count }) => ({ group, count: block_count - 1 }));
const leased = await call(execution, 'AllocateBlocks', { session, request_id: randomUUID(), counts });
const free = leased.blocks; // by group: the block ids that no sequence has

const stop = new Set(input.stop_token_ids ?? []);
const sequences = input.prompts.map((prompt, index) => (
  { id: index + 1, prompt, tokens: [], position: 0, sampled: 0, done: false })); // as they stand after all steps sent
const [waiting, running, released, inflight] = [[...sequences], [], [], []];
const summary = { steps: 0, inflight_steps_max: 0 };
const stream = execution.Execute();
const ended = new Promise((resolve, reject) => { stream.on('end', resolve).on('error', reject); });

function plan() {
  const step = { session, step_number: summary.steps + 1, new_sequences: [], decode_sequence_ids: [], items: [] };
  const about = { column: [], items: [] }; // whose answers will come, in their order
  let rows = Math.min(256, limits.max_step_rows);
  for (const one of running.filter((s) => s.position >= s.prompt.length && s.sampled < input.tokens_max)) {
    step.decode_sequence_ids.push(one.id);
    about.column.push(one);
    [one.position, one.sampled, rows] = [one.position + 1, one.sampled + 1, rows - 1];
  }
  while (waiting.length && running.length < Math.min(rows, limits.max_step_sequences)) {
    const count = Math.ceil((waiting[0].prompt.length + input.tokens_max - 1) / block_size);
    if (free.some(({ block_ids }) => block_ids.length < count)) break;
    const one = waiting.shift();
    one.tables = free.map(({ group, block_ids }) => ({ group, block_ids: block_ids.splice(0, count) }));
    step.new_sequences.push({ sequence_id: one.id, prompt_token_ids: one.prompt, tables: one.tables });
    running.push(one);
  }
  for (const one of running.filter((s) => s.position < s.prompt.length)) {
    const row_count = Math.min(rows, one.prompt.length - one.position);
    if (row_count === 0) break;
    const sample = one.position + row_count === one.prompt.length;
    step.items.push({ sequence_id: one.id, row_count, registered: {}, sample });
    about.items.push(one);
    [one.position, one.sampled, rows] = [one.position + row_count, one.sampled + Number(sample), rows - row_count];
  }
  if (about.column.length + about.items.length === 0) return null;
  step.release_sequence_ids = released.splice(0);
  return [step, about];
}

function receive(one, token) {
  if (one.done) return; // the row that was sent before its stop token was seen
  one.tokens.push(token);
  one.done = stop.has(token) || one.tokens.length === input.tokens_max;
  if (!one.done) return;
  running.splice(running.indexOf(one), 1);
  released.push(one.id);
  one.tables.forEach(({ block_ids }, index) => free[index].block_ids.push(...block_ids));
}

function pump() {
  for (let next; inflight.length < 2 && (next = plan()) !== null; summary.steps += 1) {
    stream.write({ step: next[0] });
    inflight.push(next[1]);
    summary.inflight_steps_max = Math.max(summary.inflight_steps_max, inflight.length);
  }
  if (inflight.length === 0) stream.end();
}

stream.on('data', ({ step, error }) => {
  const failure = error ?? step.error ?? step.results.find((result) => result.error)?.error;
  if (failure) return stream.destroy(new Error(failure.message));
  const { column, items } = inflight.shift();
  const results = step.results.slice(step.results.length - items.length);
  step.token_ids.forEach((token, index) => receive(column[index], token));
  results.forEach(({ token_ids }, index) => token_ids.forEach((token) => receive(items[index], token)));
  pump();
});
pump();
await ended;
await call(sessions, 'CloseSession', { session });
[sessions, execution, models].forEach((client) => client.close());
console.log(JSON.stringify({ tokens: sequences.map(({ tokens }) => tokens), ...summary }));
