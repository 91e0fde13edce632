#!/usr/bin/env python3
"""A receiver for Meterpost's HTTPS deliveries, with nothing but Python's standard library (3.9 or newer).

    python receiver.py --folder received --port 8443 --certificate server.pem --key server-key.pem \
        --secrets signing-secrets.txt

It answers 2xx only when a part is on the disk for good, and takes each part once however often it is sent:
a part is known by its `webhook-id`. `signing-secrets.txt` holds a `whsec_…` a line; several during a rotation.
"""

import argparse
import base64
import contextlib
import hashlib
import hmac
import json
import os
import re
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

MAX_BODY_BYTES = 2_000_000  # a part has at most 1 MB
TOLERANCE_SECONDS = 300  # by which the sender's clock may differ from ours
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,250}")


class RefusedError(Exception):
    """A status and a sentence for the sender, who shows it to whoever set up the job."""

    def __init__(self, status, sentence):
        super().__init__(sentence)
        self.status = status


class Store:
    """Parts as files, and a journal of what was accepted. `meterpost receiver check FOLDER` reads both."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.journal = self.folder / "requests.jsonl"
        self.lock = threading.Lock()
        self.known = {}
        lines = self.journal.read_bytes().splitlines(keepends=True) if self.journal.exists() else []
        if lines and not lines[-1].endswith(b"\n"):  # an end cut it off: its part was not acknowledged
            os.truncate(self.journal, self.journal.stat().st_size - len(lines.pop()))
        for line in map(json.loads, lines):
            self.known[line["id"]] = line["sha256"]

    def take(self, headers, body):
        """Keep a part and say what was done. When this returns, the part survives a loss of power."""
        part_id, sha256 = headers["webhook-id"], headers["meterpost-content-sha256"]
        with self.lock:  # two deliveries of one part must not both be the first
            if part_id in self.known:
                if self.known[part_id] == sha256:
                    return "known already"
                raise RefusedError(409, f"{part_id} came before with other bytes")
            folder = self.folder / headers["meterpost-job"]
            folder.mkdir(exist_ok=True)
            partial = folder / f".{headers['meterpost-filename']}.partial"
            durably(partial, "wb", body)
            partial.replace(folder / headers["meterpost-filename"])
            sync_folder(folder)
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            line = {"time": now, "id": part_id, "status": 200, "sha256": sha256, "headers": headers}
            durably(self.journal, "ab", json.dumps(line).encode() + b"\n")
            sync_folder(self.folder)
            self.known[part_id] = sha256
            return "stored"


def durably(file, mode, content):
    with file.open(mode) as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def sync_folder(folder):
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check(headers, body, keys):
    """Raise RefusedError unless the part is what its headers say and, where there are keys, was signed by one."""
    for name in ("webhook-id", "meterpost-job", "meterpost-filename", "meterpost-content-sha256"):
        if name not in headers:
            raise RefusedError(400, f"the header {name} is missing")
    if not headers["meterpost-job"].isdecimal() or not NAME.fullmatch(headers["meterpost-filename"]):
        raise RefusedError(400, "meterpost-job or meterpost-filename is not one that a file can be named after")
    if hashlib.sha256(body).hexdigest() != headers["meterpost-content-sha256"]:
        raise RefusedError(400, "the body does not have the hash that meterpost-content-sha256 says")
    if keys:
        check_signature(headers, body, keys)


def check_signature(headers, body, keys):
    """See https://www.standardwebhooks.com: HMAC-SHA256 of id, time and body; one `v1,…` for each key."""
    timestamp = headers.get("webhook-timestamp", "")
    if not timestamp.isdecimal() or abs(time.time() - int(timestamp)) > TOLERANCE_SECONDS:
        raise RefusedError(401, "webhook-timestamp is missing or too far from this server's clock")
    signed = f"{headers['webhook-id']}.{timestamp}.".encode() + body
    given = [one.encode() for one in headers.get("webhook-signature", "").split()]
    for key in keys:
        expected = b"v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest())
        if any(hmac.compare_digest(expected, one) for one in given):
            return
    raise RefusedError(401, "webhook-signature holds no signature by the secret that is known here")


class Handler(BaseHTTPRequestHandler):
    """One connection: takes POSTs on any path."""

    protocol_version = "HTTP/1.1"
    timeout = 30  # seconds that a sender may be silent
    store, keys = None, ()

    def do_POST(self):
        try:
            body = self.body()
            # Authorization is left out on purpose: it must not lie on the disk.
            kept = ("webhook-", "meterpost-", "content-type")
            headers = {name.lower(): value for name, value in self.headers.items() if name.lower().startswith(kept)}
            check(headers, body, self.keys)
            self.answer(200, self.store.take(headers, body))
        except RefusedError as error:
            self.close_connection = True
            self.answer(error.status, str(error))
        except OSError as error:  # no space left, for example: it is sent again
            self.close_connection = True
            self.answer(503, f"the part cannot be kept now: {error.strerror}")

    def body(self):
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
            raise RefusedError(413, f"a body of at most {MAX_BODY_BYTES} bytes is wanted")
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise RefusedError(400, "the body is cut off")
        return body

    def answer(self, status, sentence):
        body = (sentence + "\n").encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    """A thread for each connection."""

    daemon_threads = True
    tls = None

    def finish_request(self, request, client_address):
        # Here, in the connection's own thread: one that is slow to shake hands delays no other.
        request.settimeout(Handler.timeout)
        with self.tls.wrap_socket(request, server_side=True) as secure:
            super().finish_request(secure, client_address)

    def handle_error(self, request, client_address):
        """Say nothing of connections that broke."""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8443)
    parser.add_argument("--certificate", required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--secrets", help="file with a signing secret a line; without it signatures are not checked")
    options = parser.parse_args()
    Handler.store = Store(options.folder)
    secrets = Path(options.secrets).read_text().split() if options.secrets else []
    Handler.keys = [base64.b64decode(secret[len("whsec_") :], validate=True) for secret in secrets]
    server = Server((options.host, options.port), Handler)
    server.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.tls.load_cert_chain(options.certificate, options.key)
    print(f"https://{options.host}:{server.server_address[1]}/", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()


if __name__ == "__main__":
    main()
