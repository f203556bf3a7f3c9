// A Node.js service that uses what Node.js has: the event loop, the thread pool, a worker thread, a child with
// its channel, timers and a watched directory.  GET /visit/KEY/NUMBER answers with what each of them makes of it.
'use strict';
const crypto = require('crypto');
const fs = require('fs');
const http = require('http');
const { fork } = require('child_process');
const { promisify } = require('util');
const { Worker, isMainThread, parentPort } = require('worker_threads');

const sha256 = (text) => crypto.createHash('sha256').update(text).digest('hex');

// Questions to a worker or child are answered in any order.
function asker(other, send) {
  const waiting = new Map();
  let last = 0;
  other.on('message', ({ id, answer }) => {
    waiting.get(id)(answer);
    waiting.delete(id);
  });
  return (question) => new Promise((resolve) => {
    waiting.set(++last, resolve);
    send({ id: last, question });
  });
}

function serve() {
  const worker = new Worker(__filename);
  const child = fork(__filename, ['child']);
  const askWorker = asker(worker, (message) => worker.postMessage(message));
  const askChild = asker(child, (message) => child.send(message));
  const pbkdf2 = promisify(crypto.pbkdf2);
  const counts = new Map();
  let ticks = 0;
  let seen = 0;
  setInterval(() => { ticks++; }, 10);
  fs.mkdirSync('/tmp/watched');
  fs.watch('/tmp/watched', () => { seen++; });

  http.createServer(async (request, response) => {
    const [, , key, number] = request.url.split('/');
    counts.set(key, (counts.get(key) || 0) + 1);
    const file = `/tmp/watched/${key}`;
    await fs.promises.writeFile(file, number);
    const [hash, sum, derived, kept] = await Promise.all([
      askWorker(key + number), askChild(1), pbkdf2(key, number, 10, 16, 'sha256'), fs.promises.readFile(file, 'utf8')]);
    response.setHeader('Content-Type', 'application/json');
    response.end(JSON.stringify({
      count: counts.get(key), hash, sum, derived: derived.toString('hex'), kept, ticks, seen }));
  }).listen(8080);
}

if (!isMainThread) {
  parentPort.on('message', ({ id, question }) => parentPort.postMessage({ id, answer: sha256(question) }));
} else if (process.argv[2] === 'child') {
  let sum = 0;
  process.on('message', ({ id, question }) => {
    sum += question;
    process.send({ id, answer: sum });
  });
} else {
  serve();
}
