"""Object stores in miniature, on real sockets: as much of S3 and of Azure Blob Storage as a lake asks for."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

MOMENT = datetime(2026, 5, 1, 12, tzinfo=UTC)
ACCOUNT = "devstoreaccount1"
PAGE = 3  # names in one answer to a listing


class Store:
    """What the store holds and how it behaves; tests change it while it serves.

    Attributes:
        objects: Content by name, from the bucket or container on: ``bucket/folder/name``.
        key: What the request's ``Authorization`` must hold.
        forbidden: Names that may not be read.
        broken: Names that cannot be read.
        failing: Answer no request as it should be.
        requests: Method and path of each.
    """

    def __init__(self, key: str) -> None:
        self.objects: dict[str, bytes] = {}
        self.key = key
        self.forbidden: set[str] = set()
        self.broken: set[str] = set()
        self.failing = False
        self.requests: list[str] = []
        self.port = 0

    def etag(self, name: str) -> str:
        return hashlib.md5(self.objects[name], usedforsecurity=False).hexdigest()

    def entries(self, bucket: str, prefix: str, delimiter: str) -> tuple[list[str], list[str]]:
        """Names of objects and of folders below a prefix, without the bucket's."""
        files, folders = [], set()
        for full in self.objects:
            holder, _, name = full.partition("/")
            if holder != bucket or not name.startswith(prefix):
                continue
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
            else:
                files.append(name)
        return sorted(files), sorted(folders)


class _Handler(BaseHTTPRequestHandler):
    store: Store
    prefix = "/"
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        split = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(split.query, keep_blank_values=True).items()}
        name = unquote(split.path).removeprefix(self.prefix).strip("/")
        self.store.requests.append(f"{self.command} {self.path}")
        if self.store.failing:
            self.fail(400, "ServerDown")
        elif self.store.key not in self.headers.get("Authorization", "") + split.query:
            self.fail(403, "InvalidAccessKeyId")
        elif "/" not in name:
            self.give_listing(name, query)
        elif name in self.store.forbidden:
            self.fail(403, "AccessDenied")
        elif name in self.store.broken:
            self.fail(400, f"Broken {name}")
        elif name not in self.store.objects:
            self.fail(404, "NoSuchKey")
        else:
            self.give(name)

    def give_listing(self, bucket: str, query: dict[str, str]) -> None:
        raise NotImplementedError

    def page(self, names: list[str], after: str) -> tuple[list[str], str]:
        rest = [name for name in names if name > after]
        return rest[:PAGE], rest[PAGE - 1] if len(rest) > PAGE else ""

    def give(self, name: str) -> None:
        body = self.store.objects[name]
        size = len(body)
        ranged = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or self.headers.get("x-ms-range") or "")
        status, extra = 200, {}
        if ranged:
            begin = int(ranged[1])
            if begin >= size:
                self.fail(416, "InvalidRange")
                return
            body = body[begin : int(ranged[2] or size) + 1]
            status, extra = 206, {"Content-Range": f"bytes {begin}-{begin + len(body) - 1}/{size}"}
        extra |= {"ETag": f'"{self.store.etag(name)}"', "Last-Modified": format_datetime(MOMENT, usegmt=True)}
        self.answer(
            status, body, extra | {"x-ms-blob-type": "BlockBlob", "x-ms-creation-time": format_datetime(MOMENT)}
        )

    def fail(self, status: int, code: str) -> None:
        body = f"<Error><Code>{code}</Code><Message>{code} was the answer</Message></Error>".encode()
        self.answer(status, body, {"x-ms-error-code": code, "Content-Type": "application/xml"})

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class _S3(_Handler):
    def give_listing(self, bucket: str, query: dict[str, str]) -> None:
        if not any(name.startswith(bucket + "/") for name in self.store.objects):
            self.fail(404, "NoSuchBucket")
            return
        files, folders = self.store.entries(bucket, query.get("prefix", ""), query.get("delimiter", ""))
        names, following = self.page(sorted(files + folders), query.get("continuation-token", ""))
        found = "".join(
            f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>"
            if name in folders
            else f"<Contents><Key>{escape(name)}</Key><Size>{len(self.store.objects[f'{bucket}/{name}'])}</Size>"
            f"<ETag>&quot;{self.store.etag(f'{bucket}/{name}')}&quot;</ETag>"
            f"<LastModified>{MOMENT.isoformat()}</LastModified></Contents>"
            for name in names
        )
        more = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{escape(following)}</NextContinuationToken>"
        end = more if following else "<IsTruncated>false</IsTruncated>"
        self.answer(
            200, f"<ListBucketResult>{found}{end}</ListBucketResult>".encode(), {"Content-Type": "application/xml"}
        )


class _Blob(_Handler):
    prefix = f"/{ACCOUNT}/"

    def give_listing(self, bucket: str, query: dict[str, str]) -> None:
        if not any(name.startswith(bucket + "/") for name in self.store.objects):
            self.fail(404, "ContainerNotFound")
            return
        if query.get("comp") != "list":
            self.answer(200, b"", {"ETag": '"c"', "Last-Modified": format_datetime(MOMENT, usegmt=True)})
            return
        files, folders = self.store.entries(bucket, query.get("prefix", ""), query.get("delimiter", ""))
        names, following = self.page(sorted(files + folders), query.get("marker", ""))
        moment = format_datetime(MOMENT, usegmt=True)
        found = "".join(
            f"<BlobPrefix><Name>{escape(name)}</Name></BlobPrefix>"
            if name in folders
            else f"<Blob><Name>{escape(name)}</Name><Properties><Creation-Time>{moment}</Creation-Time>"
            f"<Last-Modified>{moment}</Last-Modified><Etag>{self.store.etag(f'{bucket}/{name}')}</Etag>"
            f"<Content-Length>{len(self.store.objects[f'{bucket}/{name}'])}</Content-Length>"
            f"<BlobType>BlockBlob</BlobType></Properties></Blob>"
            for name in names
        )
        asked = f"<Prefix>{escape(query.get('prefix', ''))}</Prefix><Delimiter>/</Delimiter>"
        answer = f"{asked}<Blobs>{found}</Blobs><NextMarker>{escape(following)}</NextMarker>"
        body = f'<EnumerationResults ContainerName="{bucket}">{answer}</EnumerationResults>'
        self.answer(200, body.encode(), {"Content-Type": "application/xml"})


@contextmanager
def _serving(store: Store, handler: type[_Handler]) -> Iterator[Store]:
    bound = type("Bound", (handler,), {"store": store})
    with ThreadingHTTPServer(("127.0.0.1", 0), bound) as server:
        store.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield store
        finally:
            server.shutdown()
            thread.join()


def s3() -> Any:
    """An S3 whose only access key is ``AKIAGOOD``."""
    return _serving(Store("AKIAGOOD/"), _S3)


def blobs() -> Any:
    """An account of Azure Blob Storage."""
    return _serving(Store(f"SharedKey {ACCOUNT}:"), _Blob)
