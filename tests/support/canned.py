"""A server on a free port that answers each request with the next of the documents it was given."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


class CannedServer:
    """Serves in threads of its own while its `with` block lasts.

    Args:
        *documents: JSON bodies, in order; the last goes on.
        headers: Sent with each of them.
    """

    def __init__(
        self, *documents: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> None:
        self._documents = list(documents)
        self._headers = dict(headers or {})
        self.requests: list[dict[str, Any]] = []
        """The bodies that were received."""
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the base class's
                pass

            def do_POST(self) -> None:
                server.requests.append(
                    json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                )
                body = json.dumps(server._next()).encode()
                self.send_response(200)
                for name, value in {"Content-Type": "application/json", **server._headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    def _next(self) -> Mapping[str, Any]:
        return self._documents.pop(0) if len(self._documents) > 1 else self._documents[0]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)

    @property
    def host(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self._server.server_address[1]}"

    @property
    def url(self) -> str:
        """Without a path."""
        return f"http://{self.host}"
