// A receiver for Meterpost's HTTPS deliveries, with nothing but Node (18 or newer).
//
//   node receiver.mjs --folder received --port 8443 --certificate server.pem --key server-key.pem \
//     --secrets signing-secrets.txt
//
// It answers 2xx only when a part is on the disk for good, and takes each part once however often it is sent:
// a part is known by its `webhook-id`. `signing-secrets.txt` holds a `whsec_…` a line; several during a rotation.

import { createHash, createHmac, timingSafeEqual } from "node:crypto";
import * as fs from "node:fs";
import { createServer } from "node:https";
import * as path from "node:path";
import { parseArgs } from "node:util";

const MAX_BODY_BYTES = 2_000_000; // a part has at most 1 MB
const TOLERANCE_SECONDS = 300; // by which the sender's clock may differ from ours
const NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,250}$/;

class Refused extends Error {
  constructor(status, sentence) {
    super(sentence);
    this.status = status;
  }
}

// Parts as files, and a journal of what was accepted. `meterpost receiver check FOLDER` reads both.
class Store {
  constructor(folder) {
    this.folder = folder;
    this.journal = path.join(folder, "requests.jsonl");
    this.known = new Map();
    fs.mkdirSync(folder, { recursive: true });
    if (!fs.existsSync(this.journal)) return;
    const content = fs.readFileSync(this.journal);
    const whole = content.lastIndexOf("\n") + 1;
    fs.truncateSync(this.journal, whole); // a line that an end cut off: its part was not acknowledged
    for (const line of content.subarray(0, whole).toString().split("\n").filter(Boolean)) {
      const { id, sha256 } = JSON.parse(line);
      this.known.set(id, sha256);
    }
  }

  // When this returns, the part survives a loss of power. It works synchronously on purpose: so two deliveries of one
  // part cannot both be the first.
  take(headers, body) {
    const id = headers["webhook-id"];
    const sha256 = headers["meterpost-content-sha256"];
    if (this.known.has(id)) {
      if (this.known.get(id) === sha256) return "known already";
      throw new Refused(409, `${id} came before with other bytes`);
    }
    const folder = path.join(this.folder, headers["meterpost-job"]);
    fs.mkdirSync(folder, { recursive: true });
    const partial = path.join(folder, `.${headers["meterpost-filename"]}.partial`);
    durably(partial, "w", body);
    fs.renameSync(partial, path.join(folder, headers["meterpost-filename"]));
    syncFolder(folder);
    const time = new Date().toISOString().replace(/\.\d+Z$/, "Z");
    durably(this.journal, "a", JSON.stringify({ time, id, status: 200, sha256, headers }) + "\n");
    syncFolder(this.folder);
    this.known.set(id, sha256);
    return "stored";
  }
}

function durably(file, flags, content) {
  const descriptor = fs.openSync(file, flags);
  try {
    fs.writeFileSync(descriptor, content);
    fs.fsyncSync(descriptor);
  } finally {
    fs.closeSync(descriptor);
  }
}

function syncFolder(folder) {
  const descriptor = fs.openSync(folder, "r");
  try {
    fs.fsyncSync(descriptor);
  } finally {
    fs.closeSync(descriptor);
  }
}

// Throws Refused unless the part is what its headers say and, where there are keys, was signed by one.
function check(headers, body, keys) {
  for (const name of ["webhook-id", "meterpost-job", "meterpost-filename", "meterpost-content-sha256"]) {
    if (!headers[name]) throw new Refused(400, `the header ${name} is missing`);
  }
  if (!/^[0-9]+$/.test(headers["meterpost-job"]) || !NAME.test(headers["meterpost-filename"])) {
    throw new Refused(400, "meterpost-job or meterpost-filename is not one that a file can be named after");
  }
  if (createHash("sha256").update(body).digest("hex") !== headers["meterpost-content-sha256"]) {
    throw new Refused(400, "the body does not have the hash that meterpost-content-sha256 says");
  }
  if (keys.length > 0) checkSignature(headers, body, keys);
}

// See https://www.standardwebhooks.com: HMAC-SHA256 of id, time and body; one `v1,…` for each key.
function checkSignature(headers, body, keys) {
  const timestamp = headers["webhook-timestamp"] ?? "";
  if (!/^[0-9]+$/.test(timestamp) || Math.abs(Date.now() / 1000 - Number(timestamp)) > TOLERANCE_SECONDS) {
    throw new Refused(401, "webhook-timestamp is missing or too far from this server's clock");
  }
  const given = (headers["webhook-signature"] ?? "").split(" ").map((one) => Buffer.from(one));
  for (const key of keys) {
    const mac = createHmac("sha256", key).update(`${headers["webhook-id"]}.${timestamp}.`).update(body);
    const expected = Buffer.from(`v1,${mac.digest("base64")}`);
    if (given.some((one) => one.length === expected.length && timingSafeEqual(one, expected))) return;
  }
  throw new Refused(401, "webhook-signature holds no signature by the secret that is known here");
}

async function bodyOf(request) {
  const length = Number(request.headers["content-length"] ?? NaN);
  if (!(length <= MAX_BODY_BYTES)) throw new Refused(413, `a body of at most ${MAX_BODY_BYTES} bytes is wanted`);
  const pieces = [];
  for await (const piece of request) pieces.push(piece); // never more than the length says
  return Buffer.concat(pieces);
}

async function judge(request, store, keys) {
  try {
    if (request.method !== "POST") throw new Refused(405, "parts come by POST");
    const body = await bodyOf(request);
    // Authorization is left out on purpose: it must not lie on the disk.
    const kept = Object.entries(request.headers).filter(([name]) => /^(webhook-|meterpost-|content-type$)/.test(name));
    const headers = Object.fromEntries(kept);
    check(headers, body, keys);
    return [200, store.take(headers, body)];
  } catch (error) {
    if (error instanceof Refused) return [error.status, error.message];
    return [503, `the part cannot be kept now: ${error.code ?? "unknown"}`]; // no space left, for example: it is sent again
  }
}

const { values: options } = parseArgs({
  options: {
    folder: { type: "string" },
    host: { type: "string", default: "127.0.0.1" },
    port: { type: "string", default: "8443" },
    certificate: { type: "string" },
    key: { type: "string" },
    secrets: { type: "string" }, // without it signatures are not checked
  },
});
for (const name of ["folder", "certificate", "key"]) {
  if (!options[name]) {
    console.error(`receiver.mjs: --${name} is needed`);
    process.exit(2);
  }
}
const secrets = options.secrets ? fs.readFileSync(options.secrets, "utf8").split(/\s+/).filter(Boolean) : [];
const keys = secrets.map((secret) => Buffer.from(secret.slice("whsec_".length), "base64"));
const store = new Store(options.folder);
const tls = { cert: fs.readFileSync(options.certificate), key: fs.readFileSync(options.key) };
const server = createServer({ ...tls, requestTimeout: 30_000 }, async (request, response) => {
  const [status, sentence] = await judge(request, store, keys);
  response.writeHead(status, { "Content-Type": "text/plain; charset=utf-8", ...(status === 200 ? {} : { Connection: "close" }) });
  response.end(sentence + "\n");
});
server.listen(Number(options.port), options.host, () => {
  console.log(`https://${options.host}:${server.address().port}/`);
});
for (const name of ["SIGINT", "SIGTERM"]) process.on(name, () => process.exit(0));
