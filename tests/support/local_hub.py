"""Serve folders as the Hugging Face hub does, on loopback: what huggingface_hub asks of it to read a model."""

import hashlib
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

REFUSALS = {"gated": (403, "GatedRepo"), "missing": (401, "RepoNotFound")}


@dataclass
class LocalHub:
    """Repositories by name, each with a folder for each of its revisions; `gated` are those that need a login. `seen`
    has the files that were sent, in order."""

    repos: dict[str, dict[str, Path]]
    gated: set[str] = field(default_factory=set)
    seen: list[str] = field(default_factory=list)
    url: str = ""

    def find(self, repo: str, revision: str) -> tuple[Path, str] | tuple[int, str]:
        """Find a revision's folder and commit, or the status and the code of the refusal."""
        if repo not in self.repos or repo in self.gated:
            return REFUSALS["gated" if repo in self.gated else "missing"]
        commits = {name_commit(repo, each): each for each in self.repos[repo]}
        revision = commits.get(revision, revision)
        if revision not in self.repos[repo]:
            return 404, "RevisionNotFound"
        return self.repos[repo][revision], name_commit(repo, revision)

    @contextmanager
    def serve(self):
        """Answer on a free port while the context lasts."""
        handler = type("Handler", (HubHandler,), {"hub": self})
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            self.url = f"http://127.0.0.1:{server.server_port}"
            thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
            thread.start()
            yield self
            server.shutdown()
            thread.join()


def name_commit(repo: str, revision: str) -> str:
    """Name the commit that a revision points at."""
    return hashlib.sha1(f"{repo}@{revision}".encode()).hexdigest()


class HubHandler(BaseHTTPRequestHandler):
    hub: LocalHub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        org, name, *rest = parts[2:] if api else parts
        repo, revision = f"{org}/{name}", rest[1] if len(rest) > 1 else "main"
        found, commit = self.hub.find(repo, revision)
        if isinstance(found, int):
            return self.answer(found, b"{}", {"X-Error-Code": commit})
        files = sorted(each for each in found.rglob("*") if each.is_file())
        if api:
            entries = [describe_file(each, found) for each in files]
            siblings = [{"rfilename": each["path"]} for each in entries]
            told = entries if rest[:1] == ["tree"] else {"id": repo, "sha": commit, "siblings": siblings}
            return self.answer(200, json.dumps(told).encode())
        return self.send(found, "/".join(rest[2:]), commit)

    def send(self, folder: Path, name: str, commit: str) -> None:
        file = folder / name
        headers = {"X-Repo-Commit": commit}
        if not file.is_file():
            return self.answer(404, b"", {**headers, "X-Error-Code": "EntryNotFound"})
        if self.command == "GET":
            self.hub.seen.append(name)
        return self.answer(200, file.read_bytes(), {**headers, "ETag": f'"{hash_file(file)}"'})

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Say nothing of each request."""


def describe_file(file: Path, folder: Path) -> dict[str, object]:
    path = file.relative_to(folder).as_posix()
    return {"type": "file", "path": path, "size": file.stat().st_size, "oid": hash_file(file)}


def hash_file(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()
