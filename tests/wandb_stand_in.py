"""A W&B server's stand-in on this machine: as much of it as `wandb sync` asks for, well or badly.

It keeps what a server would keep: each run's config, summary, history, files and end; artifacts by content; who used and made them.
"""

from __future__ import annotations

import base64
import gzip
import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

KEY = "k" * 40
ANSWERS, TOO_MANY, BROKEN, HANGS, DROPS = "answers", "429", "500", "hangs", "drops"
FAULTS = (TOO_MANY, BROKEN, HANGS, DROPS)
ENTITY = "me"


@dataclass
class Held:
    """What a server knows of a run."""

    made: dict[str, Any] = field(default_factory=dict)
    """The variables with which it was made."""
    history: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Line -> what was logged."""
    summary: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    exit_code: int | None = None
    uses: set[str] = field(default_factory=set)
    makes: set[str] = field(default_factory=set)

    @property
    def config(self) -> dict[str, Any]:
        """Key -> value."""
        return {key: one["value"] for key, one in json.loads(self.made["config"]).items() if key != "_wandb"}


@dataclass
class Server:
    """What was sent to it, and how it behaves."""

    url: str
    mode: str = ANSWERS
    key: str = KEY
    """The only one that it knows."""
    faults: int | None = None
    """So many requests are answered badly, then all are answered; None for no end."""
    held: dict[str, Held] = field(default_factory=dict)
    """Run id -> run."""
    artifacts: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By name and digest, which are `<name>:<digest>`."""
    views: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Workspace views and reports, by id."""
    uploads: Counter[str] = field(default_factory=Counter)
    """How often each file was sent."""
    unknown: list[str] = field(default_factory=list)
    """Queries that it has no answer for."""
    requests: int = 0
    lock: Any = field(default_factory=threading.RLock)

    @property
    def runs(self) -> dict[str, dict[str, Any]]:
        """Run id -> the variables with which it was made."""
        return {key: run.made for key, run in self.held.items() if run.made}

    def run(self, run_id: str) -> Held:
        """The run of an id."""
        return self.held.setdefault(run_id, Held())

    def fault(self) -> str:
        """How the next request is answered."""
        with self.lock:
            self.requests += 1
            if self.mode == ANSWERS or self.faults == 0:
                return ANSWERS
            if self.faults is not None:
                self.faults -= 1
            return self.mode


@contextmanager
def stand_in(mode: str = ANSWERS, faults: int | None = None) -> Iterator[Server]:
    """A server that takes runs, or does not."""
    server = _Quiet(("127.0.0.1", 0), _Handler)
    state = Server(f"http://127.0.0.1:{server.server_address[1]}", mode, faults=faults)
    server.state = state
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
    state: Server

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is gone is none of the tests' business."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Quiet

    def do_GET(self) -> None:
        self._answer(404, {})

    def do_POST(self) -> None:
        body = self._body()
        if body is None:
            return
        if self.path == "/graphql":
            self._graphql(json.loads(body))
        elif self.path.endswith("/file_stream"):
            with self.server.state.lock:
                _stream(self.server.state.run(self.path.split("/")[-2]), json.loads(body))
            self._answer(200, {"exitcode": None, "limits": {}})
        else:
            self._answer(200, {})

    def do_PUT(self) -> None:
        body = self._body()
        if body is None:
            return
        _, kind, owner, name = unquote(urlsplit(self.path).path).split("/", 3)
        with self.server.state.lock:
            self.server.state.uploads[self.path] += 1
            if kind == "upload":
                self.server.state.run(owner).files[name] = body
            else:
                self.server.state.artifacts[owner]["files"][name] = body
        self._answer(200, {})

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def _body(self) -> bytes | None:
        """What was sent; None where it is answered badly already."""
        fault = self.server.state.fault()
        if fault == HANGS:
            time.sleep(3600)
        if fault == DROPS:
            # Reset, not closed: half of the request is not even read.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
            return None
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if fault in (TOO_MANY, BROKEN):
            self._answer(int(fault), {"error": "not now"})
            return None
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _graphql(self, request: dict[str, Any]) -> None:
        state = self.server.state
        _, _, key = base64.b64decode(self.headers.get("Authorization", "Basic ").removeprefix("Basic ")).decode().partition(":")
        if key != state.key:
            self._answer(401, {"errors": [{"message": "user is not logged in"}]})
            return
        with state.lock:
            query, variables = request["query"], request.get("variables") or {}
            if variables.get("entity") not in (None, "", ENTITY) and "upsertBucket" in query:
                self._answer(404, {"errors": [{"message": "entity not found"}], "data": {"upsertBucket": None}})
                return
            answer = next((answer(state, variables) for name, answer in ANSWERERS.items() if name in query), None)
            if answer is None:
                state.unknown.append(query + json.dumps(variables))
        self._answer(200, {"data": answer or {}})

    def _answer(self, status: int, data: dict[str, Any]) -> None:
        body = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _stream(run: Held, sent: dict[str, Any]) -> None:
    files = sent.get("files") or {}
    history = files.get("wandb-history.jsonl") or {}
    for line, text in enumerate(history.get("content", []), start=history.get("offset", 0)):
        run.history[line] = json.loads(text)
    for text in (files.get("wandb-summary.json") or {}).get("content", []):
        run.summary |= json.loads(text)
    if sent.get("complete"):
        run.exit_code = sent.get("exitcode")


def _upsert_bucket(state: Server, variables: dict[str, Any]) -> dict[str, Any]:
    run = state.run(variables["name"])
    is_new = not run.made
    run.made |= {key: value for key, value in variables.items() if value is not None}
    project = {"id": "p", "name": variables.get("project") or "p", "entity": {"id": "e", "name": ENTITY}}
    bucket = {"id": variables["name"], "name": variables["name"], "displayName": "d", "historyLineCount": 0, "project": project}
    return {"upsertBucket": {"bucket": bucket, "inserted": is_new}}


def _create_run_files(state: Server, variables: dict[str, Any]) -> dict[str, Any]:
    run = variables["run"]
    files = [{"name": name, "uploadUrl": f"{state.url}/upload/{run}/{name}"} for name in variables["files"]]
    return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": files}}


def _viewer(state: Server, variables: dict[str, Any]) -> dict[str, Any]:
    teams = {"edges": [{"node": {"name": "team", "id": "t"}}]}
    return {"viewer": {"id": ENTITY, "entity": ENTITY, "username": ENTITY, "flags": "{}", "teams": teams}}


def _create_artifact(state: Server, variables: dict[str, Any]) -> dict[str, Any]:
    given = variables["input"]
    name = given["artifactCollectionName"]
    key = f"{name}:{given['digest']}"
    artifact = state.artifacts.setdefault(key, {"type": given["artifactTypeName"], "files": {}, "state": "PENDING"})
    if given["runName"]:  # an artifact that is used only comes without
        state.run(given["runName"]).makes.add(key)
    return {"createArtifact": {"artifact": {"id": key, "state": artifact["state"], "artifactSequence": {"latestArtifact": None}}}}


def _create_manifest(state: Server, variables: dict[str, Any]) -> dict[str, Any]:
    key = variables["artifactID"]
    file = {"id": "f", "uploadUrl": f"{state.url}/artifact/{key}/wandb_manifest.json", "uploadHeaders": []}
    return {"createArtifactManifest": {"artifactManifest": {"id": key, "file": file}}}


def _update_manifest(state: Server, variables: dict[str, Any]) -> dict[str, Any]:
    key = variables["artifactManifestID"]
    file = {"id": "f", "uploadUrl": f"{state.url}/artifact/{key}/wandb_manifest.json", "uploadHeaders": []}
    return {"updateArtifactManifest": {"artifactManifest": {"id": key, "file": file}}}


def _create_artifact_files(state: Server, variables: dict[str, Any]) -> dict[str, Any]:
    nodes = []
    for spec in variables["input"]["artifactFiles"]:
        key, name = spec["artifactID"], spec["name"]
        url = None if name in state.artifacts[key]["files"] else f"{state.url}/artifact/{key}/{name}"
        node = {"id": name, "name": name, "displayName": name, "uploadUrl": url, "uploadHeaders": [], "storagePath": name}
        nodes.append({"node": {**node, "uploadMultipartUrls": None, "artifact": {"id": key}}})
    return {"createArtifactFiles": {"files": {"edges": nodes}}}


def _commit(state: Server, variables: dict[str, Any]) -> dict[str, Any]:
    state.artifacts[variables["artifactID"]]["state"] = "COMMITTED"
    return {"commitArtifact": {"artifact": {"id": variables["artifactID"], "digest": "d"}}}


def _use(state: Server, variables: dict[str, Any]) -> dict[str, Any]:
    variables = variables["input"]
    state.run(variables["runName"]).uses.add(variables["artifactID"])
    return {"useArtifact": {"artifact": {"id": variables["artifactID"], "digest": "d", "description": None, "state": "COMMITTED"}}}


def _upsert_view(state: Server, variables: dict[str, Any]) -> dict[str, Any]:
    key = variables.get("id") or f"view{len(state.views)}"
    state.views[key] = variables
    project = {"id": "p", "name": variables["projectName"], "entityName": variables["entityName"]}
    told = {name: variables.get(name) for name in ("type", "name", "displayName", "description", "spec")}
    return {"upsertView": {"view": {"id": key, **told, "project": project, "updatedAt": "2026-01-01T00:00:00Z"}, "inserted": True}}


def _projects(state: Server, variables: dict[str, Any]) -> dict[str, Any]:
    """Those of its runs."""
    names = sorted({run.made["project"] for run in state.held.values() if run.made})
    facts = {"__typename": "Project", "id": "p", "entityName": ENTITY, "createdAt": "2026-01-01", "isBenchmark": False, "user": None}
    page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
    return {"models": {"pageInfo": page, "edges": [{"node": {**facts, "name": name}} for name in names]}}


def _upsert_project(state: Server, variables: dict[str, Any]) -> dict[str, Any]:
    name = variables["input"]["name"]
    return {"upsertModel": {"inserted": True, "project": {"id": "p", "name": name, "entityName": ENTITY}}}


ANSWERERS = {
    "GetProjects(": _projects,
    "upsertModel(": _upsert_project,
    "upsertView(": _upsert_view,
    "serverInfo": lambda state, variables: {"serverInfo": {"features": []}},
    "createArtifact(": _create_artifact,
    "createArtifactManifest(": _create_manifest,
    "updateArtifactManifest(": _update_manifest,
    "createArtifactFiles(": _create_artifact_files,
    "commitArtifact(": _commit,
    "useArtifact(": _use,
    "upsertBucket(": _upsert_bucket,
    "createRunFiles(": _create_run_files,
    "viewer": _viewer,
}
