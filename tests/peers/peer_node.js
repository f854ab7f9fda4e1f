// Transfers over Node.js streams. The protocol is in README.md.
'use strict';

const crypto = require('crypto');
const net = require('net');

const PERIOD = 65521;

function pattern(salt, size) {
  const block = Buffer.alloc(PERIOD);
  for (let i = 0; i < PERIOD; i++) block[i] = (i * 7 + (i >> 8) * 13 + salt) & 0xff;
  return Buffer.alloc(size, block);
}

const sha256 = (data) => crypto.createHash('sha256').update(data).digest();

function fail(text) {
  console.error(text);
  process.exit(1);
}

// Writes in pieces, each when the last one was taken.
function send(socket, data, done) {
  let at = 0;
  const next = () => {
    while (at < data.length) {
      const piece = data.subarray(at, at + 40000);
      at += piece.length;
      if (!socket.write(piece)) return socket.once('drain', next);
    }
    done();
  };
  next();
}

function serve(socket) {
  const parts = [];
  let length = 0;
  let announced = null;
  let sent = false;
  let ended = false;
  const finish = () => {
    if (!sent || !ended) return;
    const data = Buffer.concat(parts).subarray(16);
    if (data.length !== announced) fail(`${data.length} bytes came in place of ${announced}`);
    socket.end(sha256(data));
  };
  socket.on('data', (piece) => {
    parts.push(piece);
    length += piece.length;
    if (announced === null && length >= 16) {
      const head = Buffer.concat(parts);
      announced = Number(head.readBigUInt64BE(0));
      const downward = Number(head.readBigUInt64BE(8));
      send(socket, pattern(2, downward), () => { sent = true; finish(); });
    }
  });
  socket.on('end', () => { ended = true; finish(); });
  socket.on('error', (error) => fail(error.message));
}

function transfer(host, port, upward, downward) {
  return new Promise((resolve) => {
    const data = pattern(1, upward);
    const parts = [];
    const socket = net.connect({ host, port, allowHalfOpen: true }, () => {
      const head = Buffer.alloc(16);
      head.writeBigUInt64BE(BigInt(upward), 0);
      head.writeBigUInt64BE(BigInt(downward), 8);
      send(socket, Buffer.concat([head, data]), () => socket.end());
    });
    socket.on('data', (piece) => parts.push(piece));
    socket.on('error', (error) => fail(error.message));
    socket.on('end', () => {
      const got = Buffer.concat(parts);
      if (got.length !== downward + 32) fail(`${got.length} bytes came in place of ${downward + 32}`);
      if (!got.subarray(0, downward).equals(pattern(2, downward))) fail('the bytes from the server are not the ones it sent');
      if (!got.subarray(downward).equals(sha256(data))) fail('the bytes at the server are not the ones that were sent');
      resolve();
    });
  });
}

async function main() {
  const [role, ...rest] = process.argv.slice(2);
  if (role === 'server') {
    net.createServer({ allowHalfOpen: true }, serve).listen(Number(rest[0]), '0.0.0.0', () => console.log('listening'));
    return;
  }
  const [host, port, ...all] = rest;
  for (const sizes of all) {
    const [upward, downward] = sizes.split(':').map(Number);
    await transfer(host, Number(port), upward, downward);
  }
  console.log(`ok ${all.length}`);
}

main();
