"""The loopback provider that other tests measure by: what its invoice says, and that it leaves
nothing behind.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

from tests.support import forked
from tests.support.invoice import read_invoice
from tests.support.provider import KEY, Answer
from tests.support.provider_process import ProviderProcess

REPOSITORY = Path(__file__).parents[2]
STARTS_ONE = """
import sys
from pathlib import Path
from tests.support.provider_process import ProviderProcess
with ProviderProcess(Path(sys.argv[1])) as provider:
    print(provider.pid, flush=True)
    sys.stdin.read()
"""


def ask(provider: ProviderProcess) -> socket.socket:
    """Send a request and leave its connection open."""
    host, _, port = provider.host.partition(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    body = json.dumps({"model": "gpt-5-mini", "input": "Hi"}).encode()
    head = (
        f"POST /v1/responses HTTP/1.1\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    connection.sendall(head.encode() + body)
    return connection


def test_a_line_is_written_before_the_answer_and_says_in_the_end_whether_that_was_delivered(
    provider: ProviderProcess, tmp_path: Path
) -> None:
    with ask(provider) as connection:
        assert connection.recv(1) == b"H"
        assert [line.outcome for line in read_invoice(tmp_path / "invoice.jsonl")] == ["answered"]
        [line] = provider.lines
        assert (line.became, line.delivered, line.response_id) == ("answered", True, "resp_1")


def test_an_answer_to_somebody_who_has_left_is_told_apart(provider: ProviderProcess) -> None:
    provider.script("Hi", Answer(left_after=0))
    ask(provider).close()
    [line] = provider.lines_when(lambda lines: [line.delivered for line in lines] == [False])
    assert (line.became, line.billed) == ("left", True)


def test_it_ends_when_whoever_started_it_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STARTS_ONE, str(tmp_path / "invoice.jsonl")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with forked.Popen(command, cwd=REPOSITORY, **pipes) as starter:
        assert starter.stdout is not None
        provider = os.pidfd_open(int(starter.stdout.readline()))
        try:
            starter.send_signal(signal.SIGKILL)
            # Readable once it has ended.
            assert select.select([provider], [], [], 30)[0]
        finally:
            os.close(provider)
