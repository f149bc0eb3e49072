// Runs the cases of ../conformance (README.md there says what they mean) against mlxrt servers; schedulers-* through scheduler.mjs.
//
//   node conformance.mjs [--only SERVER] [--server NAME=ADDRESS] [--mlxrt COMMAND] [--python COMMAND] [--folder FOLDER] [CASE...]
//
// Exit code: 0 all passed, 1 a case failed, 2 nothing was run.
import { spawn } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { mkdtempSync, readFileSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import grpc from '@grpc/grpc-js';
import protoLoader from '@grpc/proto-loader';

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const text = { type: 'string' };
const many = { type: 'string', multiple: true, default: [] };
const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    only: many, server: many, folder: { ...text, default: here('../conformance') }, cases: text,
    mlxrt: { ...text, default: 'mlxrt serve' }, python: { ...text, default: 'python3' },
  },
});
const protos = process.env.MLXRT_PROTOS ?? here('../../protos');
const files = ['session', 'execution', 'model'].map((noun) => `mlxrt/v1/${noun}_service.proto`);
const { v1 } = grpc.loadPackageDefinition(protoLoader.loadSync(files, {
  includeDirs: [protos], keepCase: true, longs: Number, enums: String, bytes: String,
})).mlxrt;
const rpcOf = (name) => name.split('.').reduce((at, part, i) => (i ? at.service[part] : at[part]), v1);
const execute = rpcOf('ExecutionService.Execute');

class Mismatch extends Error {}
const CAPTURE = /^\$(\w+)(?:\[(\d+)(?:(:)(\d+))?\])?$/;

class Captures {
  constructor(bound) {
    [this.run, this.bound] = [randomUUID().slice(0, 16), { ...bound }];
  }

  lookUp([, name, first, colon, last]) {
    if (!(name in this.bound)) throw new Mismatch(`$${name} is not bound`);
    const value = this.bound[name];
    if (first === undefined) return value;
    return colon ? value.slice(Number(first), Number(last)) : value[Number(first)];
  }

  fill(value) {
    if (Array.isArray(value)) return value.map((part) => this.fill(part));
    if (value !== null && typeof value === 'object') {
      return Object.fromEntries(Object.entries(value).map(([key, part]) => [key, this.fill(part)]));
    }
    if (typeof value !== 'string') return value;
    const found = CAPTURE.exec(value);
    return found ? this.lookUp(found) : value.replaceAll('{run}', this.run);
  }

  match(wanted, actual, path) {
    let expected = wanted;
    const wrong = (what) => { throw new Mismatch(`${path}: expected ${what}, got ${JSON.stringify(actual)}`); };
    const found = typeof expected === 'string' ? CAPTURE.exec(expected) : null;
    if (found && found[2] === undefined && !(found[1] in this.bound)) {
      if (actual === undefined) wrong(`something for $${found[1]}`);
      this.bound[found[1]] = actual;
      return;
    }
    if (found) expected = this.lookUp(found);
    if (expected === null) {
      if (actual !== undefined) wrong('nothing');
    } else if (expected === '*') {
      if (actual === undefined) wrong('anything');
    } else if (Array.isArray(expected)) {
      const list = actual ?? [];
      if (!Array.isArray(list) || list.length !== expected.length) wrong(`${expected.length} elements`);
      expected.forEach((part, index) => this.match(part, list[index], `${path}[${index}]`));
    } else if (typeof expected === 'object') {
      if (actual === null || typeof actual !== 'object') wrong('an object');
      Object.entries(expected).forEach(([key, part]) => this.match(part, actual[key], `${path}.${key}`));
    } else if (!same(this.fill(expected), actual)) {
      wrong(JSON.stringify(expected));
    }
  }
}

function same(expected, actual) {
  if (actual === undefined) return !expected;
  if (typeof expected !== 'number') return expected === actual;
  if (Number.isInteger(expected) && Number.isInteger(actual)) return expected === actual;
  return Math.abs(actual - expected) <= 1e-5 * Math.max(1, Math.abs(expected));
}

// The mlxrt.v1.Error of a failed call, read as field 2 of an ExecuteResponse: the loader gives no decoder of single messages.
function errorOf(failure) {
  const [data] = failure.metadata?.get('mlxrt-error-bin') ?? [];
  if (data === undefined) return undefined;
  const size = [];
  let left = data.length;
  for (; left > 127; left = Math.floor(left / 128)) size.push((left % 128) + 128);
  return execute.responseDeserialize(Buffer.concat([Buffer.from([0x12, ...size, left]), data])).error;
}

function matchFailure(captures, exchange, failure) {
  if ('status' in exchange && exchange.status === failure.code) return;
  const error = errorOf(failure);
  if (!exchange.error || !error) throw new Mismatch(`failed: ${failure.message} ${JSON.stringify(error)}`);
  if (error.code !== failure.code) throw new Mismatch(`the status is ${failure.code}, the Error says ${error.code}`);
  captures.match(exchange.error, error, 'error');
}

function callRpc(client, name, request) {
  const rpc = rpcOf(name);
  const serialize = (value) => (Buffer.isBuffer(value) ? value : rpc.requestSerialize(value));
  const deadline = { deadline: Date.now() + 60_000 };
  return new Promise((resolve, reject) => {
    const done = (failure, answer) => (failure ? reject(failure) : resolve(answer));
    if (rpc.requestStream) {
      const call = client.makeClientStreamRequest(rpc.path, serialize, rpc.responseDeserialize, new grpc.Metadata(), deadline, done);
      call.write(request);
      call.end();
    } else if (rpc.responseStream) {
      const parts = [];
      const call = client.makeServerStreamRequest(rpc.path, serialize, rpc.responseDeserialize, request, new grpc.Metadata(), deadline);
      call.on('data', (part) => parts.push(part)).on('error', reject).on('end', () => resolve(parts));
    } else {
      client.makeUnaryRequest(rpc.path, serialize, rpc.responseDeserialize, request, new grpc.Metadata(), deadline, done);
    }
  });
}

class Stream {
  constructor(client) {
    [this.events, this.waiting] = [[], []];
    const put = (event) => (this.waiting.length ? this.waiting.shift()(event) : this.events.push(event));
    this.call = client.makeBidiStreamRequest(execute.path, execute.requestSerialize, execute.responseDeserialize);
    this.call.on('data', (answer) => put({ answer })).on('error', (failure) => put({ failure })).on('end', () => put({}));
  }

  next() {
    return this.events.length ? this.events.shift() : new Promise((resolve) => { this.waiting.push(resolve); });
  }
}

class Player {
  constructor(server, captures) {
    [this.server, this.captures, this.streams, this.sessions] = [server, captures, {}, {}];
    this.client = new grpc.Client(server.address, grpc.credentials.createInsecure());
  }

  async play(exchange) {
    if ('call' in exchange) await this.call(exchange);
    else if ('stream' in exchange) await this.stream(exchange);
    else if ('wait_ms' in exchange) await sleep(exchange.wait_ms);
    else if (exchange.server === 'drain') this.server.process.kill('SIGTERM');
    else if ('exit_code' in exchange) this.captures.match(exchange.exit_code, await this.server.ended, 'exit_code');
    else throw new Mismatch(`unknown kind of exchange: ${Object.keys(exchange)}`);
  }

  async finish() {
    Object.values(this.streams).forEach((stream) => stream.call.cancel());
    for (const session of Object.values(this.sessions)) {
      await callRpc(this.client, 'SessionService.CloseSession', { session }).catch(() => {});
    }
    this.client.close();
  }

  async call(exchange) {
    const until = Date.now() + (exchange.within_ms ?? 0);
    for (;;) {
      const bound = { ...this.captures.bound };
      try {
        await this.callOnce(exchange);
        return;
      } catch (error) {
        if (!(error instanceof Mismatch) || Date.now() >= until) throw error;
        this.captures.bound = bound;
        await sleep(20);
      }
    }
  }

  async callOnce(exchange) {
    let request = this.captures.fill(exchange.request ?? {});
    if ('bytes_hex' in exchange) request = Buffer.from(exchange.bytes_hex, 'hex');
    if ('fill_bytes' in exchange) request = Buffer.alloc(exchange.fill_bytes);
    let answer;
    try {
      answer = await callRpc(this.client, exchange.call, request);
    } catch (failure) {
      matchFailure(this.captures, exchange, failure);
      return;
    }
    if (/(Open|Resume)Session$/.test(exchange.call)) this.sessions[answer.session.session_id] = answer.session;
    if (!('response' in exchange)) throw new Mismatch(`answered where it had to fail: ${JSON.stringify(answer)}`);
    this.captures.match(exchange.response, answer, 'response');
  }

  async stream(exchange) {
    const stream = this.streams[exchange.stream] ??= new Stream(this.client);
    if ('send' in exchange) stream.call.write(this.captures.fill(exchange.send));
    else if ('half_close' in exchange) stream.call.end();
    else if ('cancel' in exchange) stream.call.cancel();
    else {
      const { answer, failure } = await stream.next();
      if (answer !== undefined && 'receive' in exchange) this.captures.match(exchange.receive, answer, 'receive');
      else if (failure !== undefined && 'end' in exchange) matchFailure(this.captures, exchange.end, failure);
      else if (answer !== undefined || failure !== undefined || exchange.end?.status !== 0) {
        throw new Mismatch(`the stream gave ${failure?.message ?? (JSON.stringify(answer) ?? 'its end')}`);
      }
    }
  }
}

async function schedule(address, given, expected) {
  const child = spawn(process.execPath, [here('scheduler.mjs'), address], { stdio: ['pipe', 'pipe', 'inherit'] });
  child.stdin.end(JSON.stringify(given));
  let printed = '';
  for await (const part of child.stdout) printed += part;
  if (!printed) throw new Mismatch('the scheduler failed');
  new Captures({}).match(expected, JSON.parse(printed).tokens, 'tokens');
}

async function start(entry, address) {
  const server = { address };
  if (address === undefined) {
    const [program, ...rest] = entry.command;
    const command = program === 'mlxrt' ? options.mlxrt : `${options.python} ${join(options.folder, program)}`;
    server.folder = mkdtempSync(join(tmpdir(), 'mlxrt-'));
    server.address = `unix:${server.folder}/s`;
    const [file, ...words] = [...command.split(' '), ...rest, '--address', server.address];
    const { MLXRT_PROTOS, ...env } = process.env; // no setting of the server's, which refuses unknown ones
    server.process = spawn(file, words, { stdio: 'ignore', env });
    server.ended = new Promise((resolve) => { server.process.on('exit', resolve).on('error', () => resolve(-1)); });
    server.ended.then((code) => { server.code = code; });
  }
  for (const until = Date.now() + 120_000; ;) {
    const client = new grpc.Client(server.address, grpc.credentials.createInsecure());
    try {
      const model = await callRpc(client, 'ModelService.GetModelInfo', {});
      const info = await callRpc(client, 'ModelService.GetServerInfo', {});
      new Captures({}).match(entry.facts, { model, server: info }, 'facts');
      return server;
    } catch (error) {
      if (error instanceof Mismatch || Date.now() > until || server.code !== undefined) {
        stop(server);
        throw error;
      }
      await sleep(50);
    } finally {
      client.close();
    }
  }
}

function stop(server) {
  server.process?.kill('SIGKILL');
  if (server.folder) rmSync(server.folder, { recursive: true, force: true });
}

async function runCase(test, name, server) {
  if (test.schedule) return schedule(server.address, test.schedule, test.tokens[name]);
  const player = new Player(server, new Captures(test.values?.[name]));
  try {
    for (const [index, exchange] of test.exchanges.entries()) {
      await player.play(exchange).catch((error) => {
        error.message = `exchange ${index}: ${error.message}`;
        throw error;
      });
    }
  } finally {
    await player.finish();
  }
}

const table = JSON.parse(readFileSync(join(options.folder, 'servers.json')));
const addresses = Object.fromEntries(options.server.map((entry) => entry.split(/=(.*)/s)));
const folder = options.cases ?? join(options.folder, 'cases');
const fits = (name) => positionals.length === 0
  || positionals.some((p) => new RegExp(`^${p.replaceAll('*', '.*')}$`).test(name));
const cases = readdirSync(folder).filter((f) => f.endsWith('.json')).sort()
  .flatMap((file) => JSON.parse(readFileSync(join(folder, file))).cases).filter(({ name }) => fits(name));
const count = { passed: 0, failed: 0, skipped: 0 };
const say = (verdict, test, name, why = '') => {
  count[verdict] += 1;
  console.log(`${verdict} ${test.name} on ${name}${why && `: ${why}`}`);
};

for (const name of Object.keys(table).filter((n) => options.only.length === 0 || options.only.includes(n))) {
  let server;
  for (const test of cases.filter(({ servers }) => servers.includes(name))) {
    const given = options.server.length > 0;
    const ownsIt = !given && table[name].fresh;
    if ((given && !(name in addresses)) || (given && test.exchanges?.some((e) => 'server' in e))) {
      say('skipped', test, name, 'no such server was given');
      continue;
    }
    server ??= await start(table[name], addresses[name]);
    try {
      await runCase(test, name, server);
      say('passed', test, name);
    } catch (error) {
      if (!(error instanceof Mismatch)) error.message = `${error.name}: ${error.message}`;
      say('failed', test, name, error.message);
    }
    if (ownsIt) {
      stop(server);
      server = undefined;
    }
  }
  if (server) stop(server);
}
console.log(`${count.passed} passed, ${count.failed} failed, ${count.skipped} skipped`);
process.exit(count.failed ? 1 : count.passed ? 0 : 2);
