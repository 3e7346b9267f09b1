"""A Hugging Face hub on loopback: serves local folders as repositories, so that real clients download from it.

It answers what huggingface_hub asks for a model: its revisions, its files, and the files themselves, whole or by range.
The commit of a revision is made from its files' names and contents as they are when the hub starts.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

API = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)(?:/(?P<what>revision|tree)/(?P<revision>[^/]+))?")
FILE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class Snapshot:
    """One commit: folder, and its files' git blob ids by path within it."""

    folder: Path
    blobs: Mapping[str, str]
    commit: str


class HubError(Exception):
    """code: the hub's word for what is not there: RepoNotFound, RevisionNotFound, EntryNotFound."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class FakeHub:
    """Serves while the context lasts: `with FakeHub({"owner/name": {"main": folder, "v1": other}}) as hub:`.

    endpoint: what HF_ENDPOINT is to be. requests: the paths asked for so far, in order, without their query.
    """

    def __init__(self, folders: Mapping[str, Mapping[str, Path]]) -> None:
        self.repos = {
            repo: {revision: snapshot(folder) for revision, folder in revisions.items()}
            for repo, revisions in folders.items()
        }
        self.requests: list[str] = []

    def __enter__(self) -> "FakeHub":
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(self))
        self._server.daemon_threads = True
        # the default poll of half a second is waited for at every shutdown
        self._thread = Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def environment(self, home: Path) -> dict[str, str]:
        """Variables that send a client here and nowhere else, with an empty cache in `home`."""
        return {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}

    def find(self, repo: str, revision: str) -> Snapshot:
        """By branch, tag or commit. Raises HubError."""
        if repo not in self.repos:
            raise HubError("RepoNotFound")
        by_commit = {found.commit: found for found in self.repos[repo].values()}
        found = self.repos[repo].get(revision) or by_commit.get(revision)
        if found is None:
            raise HubError("RevisionNotFound")
        return found


def snapshot(folder: Path) -> Snapshot:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    blobs = {path.relative_to(folder).as_posix(): blob_id(path) for path in paths}
    return Snapshot(folder, blobs, hashlib.sha1(json.dumps(blobs).encode()).hexdigest())


def blob_id(path: Path) -> str:
    """40 hexadecimal digits, as `git hash-object` prints them."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def model_info(repo: str, found: Snapshot) -> dict[str, Any]:
    return {"id": repo, "sha": found.commit, "siblings": [{"rfilename": path} for path in found.blobs]}


def tree(found: Snapshot) -> list[dict[str, Any]]:
    return [
        {"type": "file", "path": path, "oid": blob, "size": (found.folder / path).stat().st_size}
        for path, blob in found.blobs.items()
    ]


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """ "bytes=2-5" -> (2, 6); None when the whole file is wanted."""
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", header or "")
    return (int(match[1]), min(int(match[2]) + 1 if match[2] else size, size)) if match else None


def chunks(path: Path, start: int, stop: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        while start < stop and (chunk := file.read(min(CHUNK_BYTES, stop - start))):
            start += len(chunk)
            yield chunk


def handler_of(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.answer()

        def do_HEAD(self) -> None:
            self.answer()

        def log_message(self, *_: object) -> None:
            """Tests look at `requests` instead."""

        def answer(self) -> None:
            path = urlsplit(self.path).path
            hub.requests.append(unquote(path))
            try:
                if match := API.fullmatch(path):
                    self.describe(match["repo"], match["what"], unquote(match["revision"] or "main"))
                elif match := FILE.fullmatch(path):
                    self.send_file(match["repo"], unquote(match["revision"]), unquote(match["path"]))
                else:
                    raise HubError("EntryNotFound")
            except HubError as error:
                self.refuse(error.code)

        def describe(self, repo: str, what: str | None, revision: str) -> None:
            found = hub.find(repo, revision)
            body = json.dumps(tree(found) if what == "tree" else model_info(repo, found)).encode()
            self.start(HTTPStatus.OK, len(body), {"Content-Type": "application/json"})
            self.write([body])

        def send_file(self, repo: str, revision: str, path: str) -> None:
            found = hub.find(repo, revision)
            headers = {"X-Repo-Commit": found.commit}
            if path not in found.blobs:
                self.refuse("EntryNotFound", headers)
                return
            file = found.folder / path
            size = file.stat().st_size
            part = byte_range(self.headers["Range"], size)
            start, stop = part or (0, size)
            headers |= {"ETag": f'"{found.blobs[path]}"', "Accept-Ranges": "bytes"}
            if part:
                headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
            self.start(HTTPStatus.PARTIAL_CONTENT if part else HTTPStatus.OK, stop - start, headers)
            self.write(chunks(file, start, stop))

        def refuse(self, code: str, headers: Mapping[str, str] | None = None) -> None:
            self.start(HTTPStatus.NOT_FOUND, 0, {"X-Error-Code": code, "X-Error-Message": code, **(headers or {})})

        def start(self, status: HTTPStatus, length: int, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(length), **headers}.items():
                self.send_header(name, value)
            self.end_headers()

        def write(self, parts: Any) -> None:
            if self.command == "GET":
                for part in parts:
                    self.wfile.write(part)

    return Handler
