"""A W&B server's stand-in on this machine: as much of it as `wandb sync` asks for."""

from __future__ import annotations

import gzip
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Server:
    """What was sent to it."""

    url: str
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Run id -> the variables with which it was made."""
    files: set[str] = field(default_factory=set)
    history: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


@contextmanager
def stand_in() -> Iterator[Server]:
    """A server that takes runs."""
    server = _Quiet(("127.0.0.1", 0), _Handler)
    state = Server(f"http://127.0.0.1:{server.server_address[1]}")
    server.state = state  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def silent_port() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is gone is none of the tests' business."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        state: Server = self.server.state  # type: ignore[attr-defined]
        if self.path == "/graphql":
            return self._answer(self._graphql(state, json.loads(body)))
        if self.path.endswith("/file_stream"):
            sent = json.loads(body).get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
            state.history.setdefault(self.path.split("/")[-2], []).extend(map(json.loads, sent))
            return self._answer({"exitcode": None, "limits": {}})
        return self._answer({})

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.state.files.add(self.path)  # type: ignore[attr-defined]
        self._answer({})

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def _graphql(self, state: Server, request: dict[str, Any]) -> dict[str, Any]:
        query, variables = request["query"], request.get("variables") or {}
        if "upsertBucket" in query:
            given = {key: value for key, value in variables.items() if value is not None}
            state.runs.setdefault(variables["name"], {}).update(given)
            project = {"id": "p", "name": variables.get("project") or "p", "entity": {"id": "e", "name": "me"}}
            bucket = {
                "id": variables["name"],
                "name": variables["name"],
                "displayName": "d",
                "historyLineCount": 0,
                "project": project,
            }
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{state.url}/upload/{variables['run']}/{name}"} for name in variables["files"]]
            return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}
        if "viewer" in query:
            return {"viewer": {"id": "me", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
        return {}

    def _answer(self, data: dict[str, Any]) -> None:
        body = json.dumps({"data": data} if self.path == "/graphql" else data).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
