// A stateful google.longrunning.Operations server on @grpc/grpc-js: `server.js CERTS`.
//
// It serves on free ports of 127.0.0.1, and tells them in one line of JSON. Operations exist from
// the start, and what they do stands in the last segment of their names: see `README.md`.

'use strict';

const { once } = require('events');
const fs = require('fs');
const path = require('path');
const { setTimeout: sleep } = require('timers/promises');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');
const { protobuf } = require('google-gax');
const { EventEmitter } = require('events');

const PROTOS = path.join(path.dirname(require.resolve('google-gax')), '..', 'protos');
const SERVICE = 'google/longrunning/operations.proto';

// The service as grpc-js takes it, and the messages by themselves, for what is packed into an Any.
const { google } = grpc.loadPackageDefinition(
  loader.loadSync(SERVICE, { keepCase: true, longs: Number, defaults: true, includeDirs: [PROTOS] }));
const root = new protobuf.Root();
root.resolvePath = (_, target) => (path.isAbsolute(target) ? target : path.join(PROTOS, target));
root.loadSync(
  [SERVICE, 'google/rpc/error_details.proto', 'google/rpc/status.proto', 'google/protobuf/duration.proto'],
  { keepCase: true });

const encoded = (type, message) => {
  const Type = root.lookupType(type);
  return Buffer.from(Type.encode(Type.fromObject(message)).finish());
};
const packed = (type, message) => ({
  type_url: `type.googleapis.com/${type}`,
  value: encoded(type, message),
});

const failure = code => ({
  code,
  message: `nicht möglich: ${grpc.status[code]} – 不行 🚫 100%`,
  details: [
    packed('google.rpc.ErrorInfo', { reason: 'INTEROP', domain: 'interop.example', metadata: { schlüssel: 'wért' } }),
    packed('google.rpc.LocalizedMessage', { locale: 'ja', message: 'できません' }),
  ],
});

/** What a handler throws to answer with a google.rpc.Status. */
class Refusal extends Error {
  constructor(status) {
    super(status.message);
    const metadata = new grpc.Metadata();
    metadata.set('grpc-status-details-bin', encoded('google.rpc.Status', status));
    metadata.add('x-answer', 'one');
    metadata.add('x-answer', 'two');
    metadata.set('x-answer-bin', Buffer.from([...Array(256).keys()]));
    this.answer = { code: status.code, details: status.message, metadata };
  }
}

class Operation extends EventEmitter {
  constructor(name, kind, argument) {
    super();
    this.setMaxListeners(0);
    this.message = { name, done: false };
    this.kind = kind;
    this.asked = 0;
    if (kind === 'succeeded') this.succeed();
    if (kind === 'failed') this.end({ error: failure(grpc.status.PERMISSION_DENIED) });
    if (kind === 'noresult') this.end({});
    if (kind === 'ends') setTimeout(() => this.succeed(), argument);
  }

  end(result) {
    if (this.message.done) return;
    Object.assign(this.message, { done: true }, result);
    this.emit('end');
  }

  succeed() {
    this.end({ response: packed('google.protobuf.Duration', { seconds: 42 }) });
  }

  cancel() {
    if (this.kind === 'stubborn') this.succeed();
    else this.end({ error: { code: grpc.status.CANCELLED, message: 'abgebrochen ✂' } });
  }
}

const KINDS = 'run stubborn succeeded failed noresult ends late echo flaky hang seen'.split(' ');
const operations = new Map();
const deleted = new Set();

function parse(name) {
  const match = /^(?:.*\/)?([a-z]+)-?(\d*)[^/]*$/s.exec(name);
  return match ? [match[1], Number(match[2])] : ['', 0];
}

function get(name) {
  const [kind, argument] = parse(name);
  if (!KINDS.includes(kind) || deleted.has(name)) return undefined;
  if (!operations.has(name)) operations.set(name, new Operation(name, kind, argument));
  return operations.get(name);
}

/** What this server sees of a call, as a message that every client can read. */
function seen(operation, call) {
  const metadata = {};
  for (const key of Object.keys(call.metadata.getMap())) {
    const values = call.metadata.get(key);
    metadata[key] = values.map(value => (Buffer.isBuffer(value) ? value.toString('hex') : value)).join(', ');
  }
  const deadline = call.getDeadline();
  if (deadline !== Infinity) metadata['remaining-ms'] = String(deadline - Date.now());
  const certificate = call.getAuthContext()?.sslPeerCertificate;
  if (certificate?.subject) metadata.peer = certificate.subject.CN;
  metadata.asked = String(operation.asked);
  return packed('google.rpc.ErrorInfo', { reason: 'SEEN', metadata });
}

/** Finds an operation, once the call has been through what its name asks for. */
async function find(call) {
  const { name } = call.request;
  const [kind, argument] = parse(name);
  if (kind === 'code') throw new Refusal(failure(argument));
  if (kind === 'fat') {
    const status = failure(grpc.status.ABORTED);
    status.details.push(packed('google.rpc.DebugInfo', { detail: 'x'.repeat(argument) }));
    throw new Refusal(status);
  }
  if (kind === 'crash') process.exit(1);
  if (kind === 'late') await sleep(argument);
  if (kind === 'hang') {
    await once(call, 'cancelled');
    // The client has gone: the twin of the operation tells it.
    get(name.replace('hang', 'seen')).succeed();
  }
  const operation = get(name);
  if (!operation) throw new Refusal({ code: grpc.status.NOT_FOUND, message: `kenne '${name}' nicht` });
  operation.asked += 1;
  if (kind === 'flaky' && operation.asked <= argument) throw new Refusal(failure(grpc.status.UNAVAILABLE));
  if (kind === 'echo' || kind === 'flaky') operation.message.metadata = seen(operation, call);
  return operation;
}

async function list(call) {
  const { name, filter, page_size: size, page_token: token, return_partial_success: partial } = call.request;
  const big = /^big\/(\d+)\/(\d+)$/.exec(name);
  if (big) {
    const metadata = { type_url: 'interop.example/Padding', value: Buffer.alloc(Number(big[2]), 'x') };
    return { operations: Array.from({ length: Number(big[1]) }, (_, n) => ({ name: `big/${n}`, metadata })) };
  }
  const [kind, argument] = parse(name);
  if (kind === 'code') throw new Refusal(failure(argument));
  let found = [...operations.keys()].filter(key => key.startsWith(`${name}/operations/`)).sort();
  found = found.map(key => operations.get(key).message);
  if (filter) {
    if (!['done=true', 'done=false'].includes(filter)) {
      throw new Refusal({ code: grpc.status.INVALID_ARGUMENT, message: `filter '${filter}'?` });
    }
    found = found.filter(({ done }) => done === (filter === 'done=true'));
  }
  const start = Number(token);
  const end = start + (size || found.length);
  return {
    operations: found.slice(start, end),
    next_page_token: end < found.length ? String(end) : '',
    unreachable: partial ? ['locations/ü'] : [],
  };
}

/** A handler in the form that grpc-js calls. */
const unary = handler => (call, callback) => {
  handler(call).then(
    message => callback(null, message),
    error => callback(error.answer ?? { code: grpc.status.INTERNAL, details: error.stack }));
};

const handlers = {
  GetOperation: unary(async call => (await find(call)).message),
  CancelOperation: unary(async call => {
    (await find(call)).cancel();
    return {};
  }),
  DeleteOperation: unary(async call => {
    await find(call);
    operations.delete(call.request.name);
    deleted.add(call.request.name);
    return {};
  }),
  WaitOperation: unary(async call => {
    const operation = await find(call);
    const { timeout } = call.request;
    const waits = [once(operation, 'end')];
    if (timeout) waits.push(sleep(timeout.seconds * 1000 + timeout.nanos / 1e6));
    if (!operation.message.done) await Promise.race(waits);
    return operation.message;
  }),
  ListOperations: unary(list),
};

function serve(credentials, options = {}) {
  const server = new grpc.Server({
    'grpc.max_receive_message_length': -1,
    'grpc.max_send_message_length': -1,
    ...options,
  });
  server.addService(google.longrunning.Operations.service, handlers);
  return new Promise((resolve, reject) => {
    server.bindAsync('127.0.0.1:0', credentials, (error, port) => (error ? reject(error) : resolve(port)));
  });
}

async function main(certs) {
  const pem = name => fs.readFileSync(path.join(certs, name));
  const pair = name => [{ private_key: pem(`${name}.key`), cert_chain: pem(`${name}.pem`) }];
  const plain = grpc.ServerCredentials.createInsecure();
  const { createSsl } = grpc.ServerCredentials;
  console.log(JSON.stringify({
    plain: await serve(plain),
    tls: await serve(createSsl(null, pair('server'))),
    mtls: await serve(createSsl(pem('ca.pem'), pair('server'), true)),
    elsewhere: await serve(createSsl(null, pair('elsewhere'))),
    narrow: await serve(plain, { 'grpc.max_concurrent_streams': 10 }),
    aging: await serve(plain, { 'grpc.max_connection_age_ms': 300, 'grpc.max_connection_age_grace_ms': 2000 }),
  }));
}

main(process.argv[2]);
