"""A proxy before a real Prefect server that refuses or holds back the artifacts it is sent."""

from __future__ import annotations

import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit


class ArtifactProxy(ThreadingHTTPServer):
    """Passes every request on, artifacts only if it is told to.

    Attributes:
        refusals: How many artifacts are still answered with an error.
        status: Of that error.
        opened: While this is not set, artifacts are held back without an answer.
        passed: The artifacts that reached the server.
    """

    daemon_threads = True

    def __init__(self, api_url: str, refusals: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(api_url).netloc
        self.refusals = refusals
        self.status = 500
        self.passed = 0
        self.opened = threading.Event()
        self.opened.set()
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """Of the API as the proxy offers it."""
        return f"http://127.0.0.1:{self.server_port}/api"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.opened.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients may leave before they are answered."""

    def refuses(self) -> bool:
        """Whether this artifact is refused."""
        with self._lock:
            self.refusals -= 1
            return self.refusals >= 0


class _Handler(BaseHTTPRequestHandler):
    server: ArtifactProxy
    protocol_version = "HTTP/1.1"

    def forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.command == "POST" and self.path.rstrip("/").endswith("/artifacts"):
            if self.server.refuses():
                self._answer(self.server.status, b"not now")
                return
            self.server.opened.wait()
            self.server.passed += 1
        upstream = http.client.HTTPConnection(self.server.upstream)
        headers = {k: v for k, v in self.headers.items() if k.lower() != "host"}
        upstream.request(self.command, self.path, body, headers)
        answer = upstream.getresponse()
        self._answer(answer.status, answer.read(), answer.getheader("Content-Type"))
        upstream.close()

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = forward  # noqa: N815  # http.server's names

    def _answer(self, status: int, body: bytes, kind: str | None = None) -> None:
        self.send_response(status)
        if kind is not None:
            self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None: ...
