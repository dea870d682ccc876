// What the tests' scripts find on their page. Each script is the body of an async function; its arguments are variables in it.
"use strict";

const utf8 = new TextEncoder();
const HASH = Uint8Array.from(new URLSearchParams(location.search).get("hash").match(/../g), (hex) => parseInt(hex, 16));

// A session with the server of this page: QUIC has the same port as TCP.
function connect(path = "/", options = {}) {
  const serverCertificateHashes = [{ algorithm: "sha-256", value: HASH }];
  return new WebTransport(`https://${location.host}${path}`, { serverCertificateHashes, ...options });
}

async function connected(path, options) {
  const session = connect(path, options);
  await session.ready;
  return session;
}

async function receiveAll(readable) {
  const chunks = [];
  for await (const chunk of readable) chunks.push(chunk);
  return new Uint8Array(await new Blob(chunks).arrayBuffer());
}

async function receiveText(readable) {
  return new TextDecoder().decode(await receiveAll(readable));
}

// Send all of it and end the stream.
async function sendAll(writable, data) {
  const writer = writable.getWriter();
  writer.write(typeof data === "string" ? utf8.encode(data) : data).catch(() => {});
  await writer.close();
}

async function take(readable) {
  const reader = readable.getReader();
  const { value } = await reader.read();
  reader.releaseLock();
  return value;
}

// How a promise ended: its value, or what is wrong.
function outcome(promise) {
  return promise.then((value) => ({ value }), (error) => ({ error: describe(error) }));
}

function describe(error) {
  const { name, message, source, streamErrorCode, stack } = error;
  return { name, message, source, code: streamErrorCode, stack };
}

function pattern(size) {
  const data = new Uint8Array(size);
  for (let n = 0; n < size; n++) data[n] = (n * 31 + (n >> 8)) & 0xff;
  return data;
}

function equal(a, b) {
  return a.length === b.length && a.every((byte, n) => byte === b[n]);
}

async function run(names, values, body) {
  const AsyncFunction = (async () => {}).constructor;
  const plain = (key, value) => (typeof value === "bigint" ? Number(value) : value);
  return JSON.stringify(await outcome(new AsyncFunction(...names, body)(...values)), plain);
}
