"""An S3 service as a process of its own that dies at a chosen request, and the front that counts
and kills it.
"""

from __future__ import annotations

import http.client
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.support import forked
from tests.support.s3 import ACCESS_KEY_ID, REGION, SECRET_ACCESS_KEY, S3Request, is_of_a_request

Moment = Literal["before", "during", "after"]
MOMENTS: tuple[Moment, ...] = ("before", "during", "after")

START_TIMEOUT = 60.0
_REPOSITORY = Path(__file__).parents[2]


class FragileS3:
    """moto's server in a process, reached through a front in this one.

    Killed at a request it is really gone, with all it held: the front passes on what it has got and
    closes.
    """

    bucket = "results"

    def __init__(self) -> None:
        self.requests: list[S3Request] = []
        self._die: tuple[int, Moment] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._front = ThreadingHTTPServer(("127.0.0.1", 0), _front_of(self))
        self._front.daemon_threads = True
        self._thread = threading.Thread(
            target=self._front.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self._thread.start()
        self.port = 0

    @property
    def environment(self) -> dict[str, str]:
        """The variables that make it the storage of results."""
        return {
            "FASTROAI_RESULT_STORAGE": f"s3://{self.bucket}/p",
            "FASTROAI_S3_ENDPOINT_URL": f"http://127.0.0.1:{self._front.server_port}",
            "FASTROAI_S3_REGION": REGION,
            "FASTROAI_S3_ACCESS_KEY_ID": ACCESS_KEY_ID,
            "FASTROAI_S3_SECRET_ACCESS_KEY": SECRET_ACCESS_KEY,
        }

    def start(self) -> None:
        """Start it, empty but for the bucket."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._process = forked.Popen(
            [sys.executable, "-m", "tests.support.fragile_s3", str(self.port)],
            cwd=_REPOSITORY,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            with suppress(OSError):
                self._client().create_bucket(Bucket=self.bucket)
                return
            assert time.monotonic() < deadline, "moto's server did not start"
            time.sleep(0.05)

    def kill(self) -> None:
        """`kill -9`."""
        if self._process is not None:
            with suppress(ProcessLookupError):  # a stopped one is killed, too
                self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """It goes on to take connections, and never answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def die_at(self, number: int, moment: Moment) -> None:
        """Be killed at a request, counted from 1 from now on: before it is seen, half through it,
        once answered.
        """
        self._die = (len(self.requests) + number, moment)

    def results(self) -> list[str]:
        """The keys of the results of steps that are stored."""
        found = self._client().list_objects_v2(Bucket=self.bucket).get("Contents", [])
        return [item["Key"] for item in found if not is_of_a_request(item["Key"])]

    def close(self) -> None:
        """End both."""
        self.kill()
        self._front.shutdown()
        self._front.server_close()
        self._thread.join()

    def _client(self) -> Any:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        class Failing(OSError): ...

        client = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.port}",
            region_name=REGION,
            aws_access_key_id=ACCESS_KEY_ID,
            aws_secret_access_key=SECRET_ACCESS_KEY,
            config=Config(retries={"total_max_attempts": 1}),
        )

        class Patient:
            def __getattr__(self, name: str) -> Any:
                def call(**arguments: Any) -> Any:
                    try:
                        return getattr(client, name)(**arguments)
                    except BotoCoreError as error:
                        raise Failing(str(error)) from error

                return call

        return Patient()

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        """Pass one request on, or die at it."""
        path, _, query = handler.path.partition("?")
        self.requests.append(S3Request(handler.command, path, query))
        moment = (
            self._die[1] if self._die is not None and self._die[0] == len(self.requests) else None
        )
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        if moment == "before":
            self.kill()
        if self._process is None:
            handler.close_connection = True
            return
        upstream = http.client.HTTPConnection("127.0.0.1", self.port)
        try:
            upstream.putrequest(
                handler.command, handler.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in handler.headers.items():
                if name.lower() != "expect":
                    upstream.putheader(name, value)
            upstream.endheaders()
            if moment == "during":
                upstream.send(body[: len(body) // 2])
                self.kill()
            upstream.send(body)
            answer = upstream.getresponse()
            content = answer.read()
            if moment == "after":
                self.kill()
        except (OSError, http.client.HTTPException):
            handler.close_connection = True
            return
        finally:
            upstream.close()
        handler.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                handler.send_header(name, value)
        length = (
            answer.getheader("Content-Length") if handler.command == "HEAD" else str(len(content))
        )
        handler.send_header("Content-Length", length or "0")
        handler.end_headers()
        handler.wfile.write(content)


def _front_of(service: FragileS3) -> type[BaseHTTPRequestHandler]:
    class Front(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass_on(self) -> None:
            service.handle(self)

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _pass_on  # noqa: N815  # the names http.server looks for

        def handle_expect_100(self) -> bool:
            self.send_response_only(100)
            self.end_headers()
            return True

        def log_message(self, format: str, *args: Any) -> None: ...  # noqa: A002  # the base's name

    return Front


@pytest.fixture
def fragile_s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[FragileS3]:
    """A running S3 service that is the storage of results, to be killed."""
    service = FragileS3()
    try:
        service.start()
        for name, value in service.environment.items():
            monkeypatch.setenv(name, value)
        yield service
    finally:
        service.close()


def _serve(port: int) -> None:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import run_simple

    run_simple("127.0.0.1", port, DomainDispatcherApplication(create_backend_app), threaded=True)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
