// google-gax' clients on the steered emulator: `clients.js scripts|names PORT CONTROL`.

'use strict';

process.env.METADATA_SERVER_DETECTION = 'none'; // nobody is looked for beyond this machine

const fs = require('fs');
const net = require('net');
const path = require('path');
const readline = require('readline');
const gax = require('google-gax');

const { grpc } = gax;
const read = file => JSON.parse(fs.readFileSync(path.join(__dirname, '..', file), 'utf8'));
const root = new gax.protobuf.Root();
const PROTOS = path.join(path.dirname(require.resolve('google-gax')), '..', 'protos');
root.resolvePath = (_, target) => (path.isAbsolute(target) ? target : path.join(PROTOS, target));
root.loadSync(
  ['google/rpc/error_details.proto', 'google/rpc/status.proto', 'google/protobuf/duration.proto'],
  { keepCase: true });

/** Decodes a message packed into an Any, if it is of that type. */
function unpack(any, type) {
  if (any?.type_url !== `type.googleapis.com/${type}`) return undefined;
  return root.lookupType(type).decode(any.value);
}

/** The steering of the emulator: lines of JSON over TCP, each answered with one. */
class Control {
  constructor(port) {
    this.socket = net.connect(Number(port), '127.0.0.1');
    this.lines = readline.createInterface({ input: this.socket })[Symbol.asyncIterator]();
  }

  async send(order) {
    this.socket.write(`${JSON.stringify(order)}\n`);
    return JSON.parse((await this.lines.next()).value);
  }
}

const reason = details => {
  const info = details.map(any => unpack(any, 'google.rpc.ErrorInfo')).find(Boolean);
  return info ? ` [${info.reason}]` : '';
};

function failed(code, message, why = '') {
  if (code === grpc.status.CANCELLED) return `cancelled: ${message}${why}`;
  return `failed: ${grpc.status[code]} ${message}${why}`;
}

function refused(error) {
  const [bytes] = error.metadata?.get('grpc-status-details-bin') ?? [];
  const details = bytes ? root.lookupType('google.rpc.Status').decode(bytes).details : [];
  if (!(error.code in grpc.status)) throw error;
  return `${grpc.status[error.code]} ${error.details}${reason(details)}`;
}

function state(operation) {
  const progress = reason(operation.metadata ? [operation.metadata] : []);
  if (!operation.done) return `running${progress}`;
  if (operation.error) {
    const { code, message, details } = operation.error;
    return failed(code, message, reason(details)) + progress;
  }
  if (operation.response) {
    return `succeeded: ${unpack(operation.response, 'google.protobuf.Duration').seconds}s${progress}`;
  }
  return `done without result${progress}`;
}

/** What stands behind a generated client's long-running method. */
function handle(client, operation) {
  const decode = type => value => root.lookupType(type).decode(value);
  const descriptor = new gax.LongrunningDescriptor(
    client, decode('google.protobuf.Duration'), decode('google.rpc.ErrorInfo'));
  const backoff = gax.createBackoffSettings(50, 1.3, 100, null, null, null, 10000);
  return gax.operation(operation, descriptor, backoff);
}

async function perform(client, step, name, parent) {
  const get = async () => (await client.getOperation({ name }))[0];
  switch (step) {
    case 'get':
      return state(await get());
    case 'get within 1s': {
      const once = { timeout: 1000, retry: gax.createRetryOptions([], gax.createDefaultBackoffSettings()) };
      return client.getOperation({ name }, once).then(
        ([operation]) => state(operation),
        error => grpc.status[error.code]);
    }
    case 'cancel':
      await client.cancelOperation({ name });
      return 'ok';
    case 'delete':
      await client.deleteOperation({ name });
      return 'ok';
    case 'wait': { // which the client has not
      const stub = await client.operationsStub;
      const request = { name, timeout: { seconds: 5 } };
      return state(await new Promise((resolve, reject) => {
        stub.waitOperation(request, (error, operation) => (error ? reject(error) : resolve(operation)));
      }));
    }
    case 'list':
      return String((await client.listOperations({ name: parent }))[0].length);
    default: {
      const operation = handle(client, await get());
      if (step === 'cancel and result') await operation.cancel();
      let ended;
      try {
        ended = await operation.promise();
      } catch (error) {
        if (error.metadata) throw error; // the call's, not the operation's
        return failed(error.code, error.message);
      }
      const [response, , raw] = ended;
      return raw.response ? `succeeded: ${response.seconds}s` : 'done without result';
    }
  }
}

async function scripts(client, control) {
  const calls = ['get', 'cancel', 'delete', 'wait', 'list', 'get within 1s', 'result', 'cancel and result'];
  const results = {};
  for (const [number, script] of read('scripts.json').entries()) {
    const parent = `projects/node-${number}`;
    const name = `${parent}/operations/ü 1`;
    const outcomes = (results[script.script] = []);
    for (const step of script.steps) {
      if (calls.includes(step)) {
        const outcome = await perform(client, step, name, parent).catch(refused);
        outcomes.push(outcome.replace(`"${name}"`, 'NAME'));
        continue;
      }
      if (step === 'seen') {
        outcomes.push(await control.send({ do: 'seen', name }));
        continue;
      }
      const [event, argument = ''] = step.split(' ');
      const many = event === 'start' && argument ? [...Array(Number(argument)).keys()] : undefined;
      for (const each of many ? many.map(n => `${name} ${n}`) : [name]) {
        await control.send({ do: event, name: each, argument });
      }
    }
  }
  return results;
}

async function names(client, control) {
  await control.send({ do: 'calls' });
  for (const name of read('names.json')) {
    await client.getOperation({ name }).then(
      () => { throw new Error(`${name} is not there`); },
      error => { if (error.code !== grpc.status.NOT_FOUND) throw error; });
  }
  const helper = read('names.json').map(name => gax.routingHeader.fromParams({ name }));
  return { wire: await control.send({ do: 'calls' }), helper };
}

async function main(what, port, controlPort) {
  const control = new Control(controlPort);
  const options = { servicePath: '127.0.0.1', port: Number(port), sslCreds: grpc.credentials.createInsecure() };
  const client = gax.lro(options).operationsClient(options);
  console.log(JSON.stringify(await { scripts, names }[what](client, control)));
  process.exit();
}

main(...process.argv.slice(2));
