"""An OpenAI-compatible endpoint on this machine, whose answers a test decides."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-made-up-and-secret"
Say = Callable[[str, int], tuple[int, Any]]
"""(reply that is judged, which call of it) -> state and body."""


class Server(ThreadingHTTPServer):
    """An endpoint whose answers a test decides."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, say: Say) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.say = say
        self.calls: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.times: dict[str, int] = {}
        self.lock = threading.Lock()
        self.at_once = self.most_at_once = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        call = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = call["messages"][0]["content"].split("<text>\n")[-1].split("\n</text>")[0]
        server = self.server
        with server.lock:
            server.calls.append({"path": self.path, **call})
            server.keys.append(self.headers.get("Authorization"))
            server.times[text] = server.times.get(text, 0) + 1
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            state, body = server.say(text, server.times[text])
        finally:
            with server.lock:
                server.at_once -= 1
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(state)
        if state == 302:
            self.send_header("Location", server.url + "/elsewhere")
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self.server.calls.append({"path": self.path})
        self.server.keys.append(self.headers.get("Authorization"))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def serving(say: Say) -> Iterator[Server]:
    server = Server(say)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def completion(content: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": content}}]}


def rated(text: str) -> dict[str, int]:
    return {"joy": len(text) % 11, "trust": len(text) * 7 % 11}


def well(text: str, _: int) -> tuple[int, Any]:
    return 200, completion(json.dumps(rated(text)))
