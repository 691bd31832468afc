"""A local server that speaks as much of the hub's API as a download needs."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """One repository, `someone/tiny`. cut: bytes after which a download breaks off; stays_down: nothing is served after that."""

    def __init__(self, files: dict[str, bytes]):
        self.files, self.cut, self.spoilt, self.stays_down, self.is_down = files, 0, "", False, False
        self.ranges: list[str] = []
        self.requests = 0
        self.url = ""

    def listing(self) -> dict:
        siblings = []
        for name, content in self.files.items():
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            entry: dict = {"rfilename": name, "size": len(content), "blobId": blob}
            if name.endswith((".safetensors", ".gguf")):
                entry["lfs"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "pointerSize": 130}
            siblings.append(entry)
        facts = {"private": False, "downloads": 0, "likes": 0, "tags": [], "gated": False, "disabled": False}
        return {
            "_id": "1",
            "id": "someone/tiny",
            "modelId": "someone/tiny",
            "sha": COMMIT,
            "siblings": siblings,
            **facts,
        }


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            hub.requests += 1
            path = self.path.split("?")[0]
            if hub.is_down:
                return self.answer(503, b"")
            if re.fullmatch(r"/api/models/someone/tiny(/revision/[\w.]+)?", path):
                known = path.endswith("tiny") or path.rsplit("/", 1)[1] in ("main", COMMIT, COMMIT[:7])
                return (
                    self.answer(200, json.dumps(hub.listing()).encode()) if known else self.missing("RevisionNotFound")
                )
            found = re.fullmatch(rf"/someone/tiny/resolve/{COMMIT}/([\w.-]+)", path)
            if found is None or found[1] not in hub.files:
                return self.missing("RepoNotFound")
            return self.file(found[1])

        def file(self, name: str) -> None:
            content = hub.files[name]
            etag = hashlib.sha256(content).hexdigest()
            if name == hub.spoilt:
                content = content[:-1] + bytes([content[-1] ^ 1])
            asked, first = self.headers.get("Range"), 0
            if asked:
                hub.ranges.append(asked)
                first = int(re.findall(r"bytes=(\d+)-", asked)[0])
            self.send_response(206 if asked else 200)
            self.send_header("Content-Length", str(len(content) - first))
            if asked:
                self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
            for key, value in {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                if hub.cut and len(content) - first > hub.cut:
                    self.wfile.write(content[first : first + hub.cut])
                    self.wfile.flush()
                    hub.is_down = hub.stays_down
                    return self.connection.close()
                self.wfile.write(content[first:])

        def missing(self, code: str) -> None:
            self.answer(404, b"{}", {"X-Error-Code": code})

        def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for key, value in {
                "Content-Type": "application/json",
                "Content-Length": str(len(body)),
                **(headers or {}),
            }.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    return Handler


@contextmanager
def running(hub: Hub) -> Iterator[Hub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
