"""A small server that speaks S3 as far as the product uses it: the address names the bucket, objects lie in a folder.

It stands in for a real one and passes the same suite (`tests/integration/test_objects.py`). Every request has to be
signed (Signature Version 4) by the one key it knows. What it does not know it answers by 501, so nothing passes unseen.
"""

import asyncio
import hashlib
import hmac
import os
import secrets
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, unquote
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

from aiohttp import web

BUCKET = "exports"
REGION = "eu-central-1"
PAGE = 7
"""So few names does a list hold before it has to be asked on."""
_SMALLEST_PART = 5 << 20
_LONGEST_BODY = 64 << 20


@contextmanager
def running_s3(folder: Path) -> Iterator["S3Server"]:
    """Run a server, and tell this process and those that it starts how to reach it."""
    server = S3Server(folder)
    server.start()
    before = {name: os.environ.get(name) for name in server.environment}
    os.environ.update(server.environment)
    try:
        yield server
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        server.stop()


class S3Problem(Exception):  # noqa: N818 - the protocol's word is Code
    """An answer that is no success."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status, self.code = status, code


class Asked(NamedTuple):
    """One request, its body read and its signature right."""

    method: str
    key: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes


class S3Server:
    """It runs in a thread of its own; stopped, it can be started again, on the same port and with what it holds."""

    def __init__(self, folder: Path) -> None:
        """`folder` is made; it holds the bucket, and uploads that are not complete."""
        self.objects, self.uploads = folder / "objects", folder / "uploads"
        self.objects.mkdir(parents=True)
        self.uploads.mkdir()
        self.access_key, self.secret_key = "AKIATEST", secrets.token_hex(16)
        self.buckets = {BUCKET}
        """It has one; without it, somebody has deleted it."""
        self.port = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    @property
    def environment(self) -> dict[str, str]:
        """How a client is told of this server."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": REGION,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ALLOW_HTTP": "true",
        }

    def names(self) -> list[str]:
        """Return the names of all objects."""
        return sorted(unquote(one.name) for one in self.objects.iterdir())

    def start(self) -> None:
        """Serve, once this returns."""
        is_up = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, args=(self._loop, is_up), daemon=True)
        self._thread.start()
        assert is_up.wait(10), "the S3 server did not start"

    def stop(self) -> None:
        """End every connection, and serve no more."""
        if self._loop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)
            self._loop = self._thread = None

    def _serve(self, loop: asyncio.AbstractEventLoop, is_up: threading.Event) -> None:
        application = web.Application(client_max_size=_LONGEST_BODY)
        application.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(application, shutdown_timeout=0.1, access_log=None)
        loop.run_until_complete(runner.setup())
        loop.run_until_complete(web.TCPSite(runner, "127.0.0.1", self.port, reuse_address=True).start())
        self.port = runner.addresses[0][1]
        is_up.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    async def _answer(self, request: web.Request) -> web.Response:
        path, _mark, query = request.raw_path.partition("?")
        body = await request.read()
        bucket, _slash, key = unquote(path).removeprefix("/").partition("/")
        try:
            _check_signature(self, request, path, query, body)
            _check_bucket(self, bucket)
            pairs = dict(parse_qsl(query, keep_blank_values=True))
            asked = Asked(request.method, key, pairs, request.headers, body)
            return self._of_an_object(asked) if key else self._of_the_bucket(asked)
        except S3Problem as problem:
            text = "" if request.method == "HEAD" else f"<Error><Code>{problem.code}</Code></Error>"
            return web.Response(status=problem.status, text=text, content_type="application/xml")

    def _of_the_bucket(self, asked: Asked) -> web.Response:
        if asked.method == "GET" and asked.query.get("list-type") == "2":
            return self._list(asked.query)
        if asked.method == "POST" and "delete" in asked.query:
            names = [one.text or "" for one in ET.fromstring(asked.body).iter() if _tag(one) == "Key"]  # noqa: S314 - from our own client
            for name in names:
                self._file(name).unlink(missing_ok=True)
            deleted = "".join(f"<Deleted><Key>{escape(name)}</Key></Deleted>" for name in names)
            return _xml(f"<DeleteResult>{deleted}</DeleteResult>")
        raise S3Problem(501, "NotImplemented")

    def _list(self, query: Mapping[str, str]) -> web.Response:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        behind = query.get("continuation-token") or query.get("start-after", "")
        # A folder, where they are asked for, counts as one name.
        found = {
            prefix + rest.partition(delimiter)[0] + delimiter if delimiter and delimiter in rest else prefix + rest
            for rest in (name.removeprefix(prefix) for name in self.names() if name.startswith(prefix))
        }
        names = sorted(name for name in found if name > behind)
        page, is_cut = names[:PAGE], len(names) > PAGE
        folders = [name for name in page if delimiter and name.endswith(delimiter)]
        common = "".join(f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in folders)
        contents = "".join(
            f"<Contents><Key>{escape(name)}</Key><LastModified>{_modified(file):%Y-%m-%dT%H:%M:%S.000Z}</LastModified>"
            f"<ETag>{escape(_etag(file))}</ETag><Size>{file.stat().st_size}</Size></Contents>"
            for name, file in ((name, self._file(name)) for name in page if name not in folders)
        )
        more = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if is_cut else ""
        return _xml(
            f"<ListBucketResult><Name>{BUCKET}</Name><KeyCount>{len(page)}</KeyCount>"
            f"<IsTruncated>{str(is_cut).lower()}</IsTruncated>{more}{contents}{common}</ListBucketResult>"
        )

    def _of_an_object(self, asked: Asked) -> web.Response:
        if "x-amz-copy-source" in asked.headers or set(asked.query) - {"uploads", "uploadId", "partNumber"}:
            raise S3Problem(501, "NotImplemented")
        if {"uploads", "uploadId"} & asked.query.keys():
            return self._of_an_upload(asked)
        match asked.method:
            case "GET" | "HEAD":
                return self._give(asked)
            case "PUT":
                _write(self._file(asked.key), asked.body)
                return web.Response(headers={"ETag": _etag(self._file(asked.key))})
            case "DELETE":
                self._file(asked.key).unlink(missing_ok=True)
                return web.Response(status=204)
        raise S3Problem(501, "NotImplemented")

    def _of_an_upload(self, asked: Asked) -> web.Response:
        match asked.method, "uploads" in asked.query:
            case "POST", True:
                upload = secrets.token_hex(8)
                (self.uploads / upload).mkdir()
                begun = f"<Key>{escape(asked.key)}</Key><UploadId>{upload}</UploadId>"
                return _xml(f"<InitiateMultipartUploadResult>{begun}</InitiateMultipartUploadResult>")
            case "PUT", False:
                part = self._upload(asked) / f"{int(asked.query['partNumber']):05d}"
                _write(part, asked.body)
                return web.Response(headers={"ETag": _etag(part)})
            case "POST", False:
                return self._complete(asked)
            case "DELETE", False:
                shutil.rmtree(self._upload(asked))
                return web.Response(status=204)
        raise S3Problem(501, "NotImplemented")

    def _give(self, asked: Asked) -> web.Response:
        file = self._file(asked.key)
        if not file.exists():
            raise S3Problem(404, "NoSuchKey")
        headers = {"ETag": _etag(file), "Last-Modified": f"{_modified(file):%a, %d %b %Y %H:%M:%S GMT}"}
        content = file.read_bytes()
        if asked.method == "HEAD":
            return web.Response(headers=headers | {"Content-Length": str(len(content))})
        if (wanted := asked.headers.get("Range")) is None:
            return web.Response(body=content, headers=headers)
        first, _dash, last = wanted.removeprefix("bytes=").partition("-")
        start = int(first) if first else max(0, len(content) - int(last))
        end = min(len(content), int(last) + 1) if first and last else len(content)
        if start >= len(content):
            raise S3Problem(416, "InvalidRange")
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        return web.Response(status=206, body=content[start:end], headers=headers)

    def _complete(self, asked: Asked) -> web.Response:
        upload = self._upload(asked)
        listed = [one for one in ET.fromstring(asked.body) if _tag(one) == "Part"]  # noqa: S314 - as above
        told = [{_tag(child): child.text or "" for child in one} for one in listed]
        parts = [upload / f"{int(one['PartNumber']):05d}" for one in told]
        if any(not part.exists() or _etag(part) != one["ETag"] for part, one in zip(parts, told, strict=True)):
            raise S3Problem(400, "InvalidPart")
        if parts != sorted(parts):
            raise S3Problem(400, "InvalidPartOrder")
        if any(part.stat().st_size < _SMALLEST_PART for part in parts[:-1]):
            raise S3Problem(400, "EntityTooSmall")
        _write(self._file(asked.key), b"".join(part.read_bytes() for part in parts))
        shutil.rmtree(upload)
        etag = escape(_etag(self._file(asked.key)))
        done = f"<Bucket>{BUCKET}</Bucket><Key>{escape(asked.key)}</Key><ETag>{etag}</ETag>"
        return _xml(f"<CompleteMultipartUploadResult>{done}</CompleteMultipartUploadResult>")

    def _file(self, key: str) -> Path:
        return self.objects / quote(key, safe="")

    def _upload(self, asked: Asked) -> Path:
        upload = self.uploads / quote(asked.query["uploadId"], safe="")
        if not upload.is_dir():
            raise S3Problem(404, "NoSuchUpload")
        return upload


def _check_bucket(server: S3Server, name: str) -> None:
    if name not in server.buckets:
        raise S3Problem(404, "NoSuchBucket")


def _check_signature(server: S3Server, request: web.Request, path: str, query: str, body: bytes) -> None:
    """Raise S3Problem unless a request is signed by the server's key, and its body is the one that was signed."""
    scheme, _space, rest = request.headers.get("Authorization", "").partition(" ")
    told = dict(one.strip().partition("=")[::2] for one in rest.split(","))
    if scheme != "AWS4-HMAC-SHA256" or not {"Credential", "SignedHeaders", "Signature"} <= told.keys():
        raise S3Problem(403, "AccessDenied")
    key, _slash, scope = told["Credential"].partition("/")
    if key != server.access_key:
        raise S3Problem(403, "InvalidAccessKeyId")
    payload = request.headers.get("x-amz-content-sha256", "")
    if payload not in {"UNSIGNED-PAYLOAD", hashlib.sha256(body).hexdigest()}:
        raise S3Problem(400, "XAmzContentSHA256Mismatch")
    pairs = sorted((quote(k, safe="~"), quote(v, safe="~")) for k, v in parse_qsl(query, keep_blank_values=True))
    headers = [f"{name}:{' '.join(request.headers[name].split())}\n" for name in told["SignedHeaders"].split(";")]
    canonical = "\n".join(
        [
            *(request.method, path, "&".join("=".join(pair) for pair in pairs)),
            *("".join(headers), told["SignedHeaders"], payload),
        ]
    )
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    to_sign = "\n".join(["AWS4-HMAC-SHA256", request.headers["x-amz-date"], scope, digest])
    signing = f"AWS4{server.secret_key}".encode()
    for word in scope.split("/"):
        signing = hmac.digest(signing, word.encode(), "sha256")
    if not hmac.compare_digest(hmac.digest(signing, to_sign.encode(), "sha256").hex(), told["Signature"]):
        raise S3Problem(403, "SignatureDoesNotMatch")


def _write(file: Path, content: bytes) -> None:
    """Put a file there at once, as a whole."""
    beside = file.parent.parent / f"writing-{secrets.token_hex(4)}"
    beside.write_bytes(content)
    beside.replace(file)


def _etag(file: Path) -> str:
    return f'"{hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()}"'


def _modified(file: Path) -> datetime:
    return datetime.fromtimestamp(file.stat().st_mtime, UTC)


def _tag(element: ET.Element) -> str:
    return element.tag.rpartition("}")[2]


def _xml(text: str) -> web.Response:
    return web.Response(text=f'<?xml version="1.0" encoding="UTF-8"?>{text}', content_type="application/xml")
