"""A Hugging Face hub on this machine: the few requests by which a client makes a repository, commits and downloads."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_tests"
PRIVATE_OF_OTHERS = "others/secret"


class Hub(ThreadingHTTPServer):
    """Repositories as lists of commits, each a dictionary from file names to contents.

    Attributes:
        repositories: Name to its commits, oldest first.
        private: Name to whether the client asked for a private repository, where it said anything.
        commits: Files named in each commit that came in.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.repositories: dict[str, list[dict[str, bytes]]] = {}
        self.private: dict[str, Any] = {}
        self.commits: list[list[str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit_named(self, repository: str, revision: str) -> int | None:
        """Which commit a branch or a hash means."""
        commits = self.repositories[repository]
        names = {commit_hash(repository, number): number for number in range(len(commits))}
        return len(commits) - 1 if revision == "main" else names.get(revision)


def commit_hash(repository: str, number: int) -> str:
    return hashlib.sha1(f"{repository} {number}".encode()).hexdigest()


class Request(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, status: int, body: Any, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status: int, code: str) -> None:
        self.answer(status, {"error": code}, X_Error_Code=code)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "Invalid username or password."})
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if name == PRIVATE_OF_OTHERS:
                return self.answer(403, {"error": "You don't have the rights to create a model under this namespace"})
            self.server.private[name] = asked.get("visibility", asked.get("private"))
            known = name in self.server.repositories
            self.server.repositories.setdefault(name, [{}])
            return self.answer(409 if known else 200, {"url": f"{self.server.url}/{name}"})
        _, _, _, owner, own_name, action, _ = path.split("/")
        name = f"{owner}/{own_name}"
        if action == "preupload":
            files = [file["path"] for file in json.loads(body)["files"]]
            listed = [{"path": file, "uploadMode": "regular", "shouldIgnore": False} for file in files]
            return self.answer(200, {"files": listed})
        lines = [json.loads(line) for line in body.splitlines()]
        added = {v["path"]: base64.b64decode(v["content"]) for v in (x["value"] for x in lines if x["key"] == "file")}
        commits = self.server.repositories[name]
        commits.append({**commits[-1], **added})
        self.server.commits.append(sorted(added))
        oid = commit_hash(name, len(commits) - 1)
        return self.answer(200, {"commitUrl": f"{self.server.url}/{name}/commit/{oid}", "commitOid": oid})

    def do_GET(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        from_api = parts[:2] == ["api", "models"]
        owner, own_name, *rest = parts[2:] if from_api else parts
        name = f"{owner}/{own_name}"
        if name not in self.server.repositories:
            return self.refuse(401 if name == PRIVATE_OF_OTHERS else 404, "RepoNotFound")
        number = self.server.commit_named(name, rest[1] if len(rest) > 1 else "main")
        if number is None:
            return self.refuse(404, "RevisionNotFound")
        files, sha = self.server.repositories[name][number], commit_hash(name, number)
        if from_api and rest[:1] == ["tree"]:
            of = {file: hashlib.sha1(data).hexdigest() for file, data in files.items()}
            return self.answer(200, [{"type": "file", "path": f, "size": len(files[f]), "oid": of[f]} for f in files])
        if from_api:
            return self.answer(200, {"id": name, "sha": sha, "siblings": [{"rfilename": file} for file in files]})
        if rest[2] not in files:
            return self.refuse(404, "EntryNotFound")
        data = files[rest[2]]
        return self.answer(200, data, X_Repo_Commit=sha, ETag=f'"{hashlib.sha1(data).hexdigest()}"')

    def do_HEAD(self) -> None:
        self.do_GET()


@contextmanager
def hub_running() -> Iterator[Hub]:
    """A hub that answers until the block ends."""
    with Hub() as hub:
        thread = Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
