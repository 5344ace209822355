"""The process that `forked` forks: it imports, and waits; `python -m tests.support.fork_server KIND
FOLDER`.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

THIRD_PARTY = (
    "aiosqlite",
    "anyio._backends._asyncio",
    "asyncpg",
    "genai_prices.data",
    "genai_prices.decompose",
    "genai_prices.validation",
    "moto.moto_server.werkzeug_app",
    "moto.s3.responses",
    "openai._resource",
    "openai.lib._chat_completion_resources",
    "openai.lib._parsing._responses",
    "openai.lib._response_resources",
    "openai.lib.streaming.chat",
    "openai.lib.streaming.responses",
    "openai.pagination",
    "openai.resources",
    "openai.resources.chat.completions.completions",
    "openai.resources.chat.completions.messages",
    "openai.resources.responses.responses",
    "prefect.cli.worker",
    "prefect.client.orchestration",
    "prefect.flow_engine",
    "prefect.task_engine",
    "prefect.events.clients",
    "prefect.utilities.visualization",
    "prefect.workers.process",
    "pydantic.v1",
    "pydantic_ai.models.anthropic",
    "pydantic_ai.models.function",
    "pydantic_ai.models.openai",
    "pydantic_ai.providers.openai",
    "rich._emoji_codes",
    "sqlalchemy.dialects.postgresql.asyncpg",
    "sqlalchemy.dialects.sqlite.aiosqlite",
)
"""What our programs import when they run, so late that importing fastroai does not bring it."""

OF_TESTS = (
    "hypothesis.stateful",
    "hypothesis.strategies",
    "moto.server",
    "prefect_aws.workers",
    "pydantic_ai.models.google",
    "pytest",
    "pytest_asyncio.plugin",
    "pytest_timeout",
    "xdist.remote",
)
"""What the workers of pytest-xdist import besides."""

PREFECTS_SERVER = (
    "aiosqlite",
    "asyncpg",
    "prefect.server.api.server",
    "sqlalchemy.dialects.postgresql.asyncpg",
    "sqlalchemy.dialects.sqlite.aiosqlite",
    "uvicorn.lifespan.on",
    "uvicorn.protocols.http.auto",
    "uvicorn.protocols.websockets.auto",
)

ANSWERS = (
    "openai.types.chat.chat_completion:ChatCompletion",
    "openai.types.responses.response:Response",
    "prefect.client.schemas.actions:FlowCreate",
    "prefect.client.schemas.objects:FlowRun",
    "prefect.events.schemas.events:Event",
    "fastroai.agent.schemas:ChatResponse",
    "fastroai.pipelines.schemas:PipelineResult",
)
"""Models that pydantic builds where they are first used: for OpenAI's that takes as long as all the
rest of a small program.
"""

IMPORTED = {"bare": ("pydantic_ai",), "server": PREFECTS_SERVER, "full": THIRD_PARTY + OF_TESTS}


def imported(kind: str) -> None:
    """Import what programs of this kind find imported."""
    for name in IMPORTED[kind]:
        importlib.import_module(name)
    if kind != "full":
        return
    package = importlib.import_module("fastroai")
    for module in pkgutil.walk_packages(package.__path__, "fastroai."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in ANSWERS:
        pkgutil.resolve_name(name).model_rebuild()
    journals = importlib.import_module("fastroai.replay.model")
    journals.ModelMessagesTypeAdapter.rebuild()
    for kept in (journals._Answer, journals.ModelResponse, tuple[journals.LedgerEntry, ...]):
        journals.adapter_of(kept)


def serve(listener: socket.socket) -> Callable[[], Any]:
    """Fork for each request; returns in the fork only, with the program it is to be."""
    while True:
        connection, _ = listener.accept()
        size, streams, _, _ = socket.recv_fds(connection, 4, 3)
        content = b""
        while len(content) < int.from_bytes(size, "big"):
            content += connection.recv(1 << 20)
        if not os.fork():
            listener.close()
            program = _keep(connection, json.loads(content), streams)
            if program is not None:
                return program
            os._exit(0)
        for opened in (*streams, connection.detach()):
            os.close(opened)


def _keep(
    connection: socket.socket, request: dict[str, Any], streams: list[int]
) -> Callable[[], Any] | None:
    """In the fork: fork again, and tell how that one ended. None when that is done."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if not child:
        connection.close()
        return _become(request, streams)
    for stream in streams:
        os.close(stream)
    connection.sendall(child.to_bytes(4, "big"))
    select.select([os.pidfd_open(child), connection], [], [])
    with suppress(OSError):
        if connection.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK) == b"":
            os.kill(child, signal.SIGKILL)  # the test that wanted it is gone
    _, status = os.waitpid(child, 0)
    connection.sendall(os.waitstatus_to_exitcode(status).to_bytes(4, "big", signed=True))
    return None


def _become(request: dict[str, Any], streams: list[int]) -> Callable[[], Any]:
    if request["new_session"]:
        os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.executable = request["executable"]
    settled = _prefects_environment()
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    time.tzset()
    # As in a process that a terminal starts, whatever the tests' own shell says.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=stream is sys.stderr or stream.isatty())
    if "PYTHONUNBUFFERED" in os.environ:
        sys.stdout.reconfigure(write_through=True)
    if "prefect" in sys.modules and _prefects_environment() != settled:
        _read_settings_again()
    return _program(request["args"][1:])


def _prefects_environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k == "HOME" or k.startswith("PREFECT_")}


def _read_settings_again() -> None:
    """Those of Prefect are read when it is imported; our own when they are asked for."""
    from prefect.context import refresh_global_settings_context
    from prefect.logging.configuration import setup_logging

    refresh_global_settings_context()
    setup_logging(incremental=False)


def _program(arguments: list[str]) -> Callable[[], Any]:
    """What `python ARGUMENTS` would run."""
    main = ModuleType("__main__")
    sys.modules["__main__"] = main
    sys.path[:] = [*_python_path(), *sys.path]
    first = arguments[0]
    if first == "-m":
        sys.path.insert(0, str(Path.cwd()))
        sys.argv = ["-m", *arguments[2:]]
        return lambda: runpy._run_module_as_main(arguments[1])  # type: ignore[attr-defined]
    if first == "-c":
        sys.path.insert(0, "")
        sys.argv = ["-c", *arguments[2:]]
        code = compile(arguments[1], "<string>", "exec")
    else:
        path = Path(first)
        sys.path.insert(0, str(path.parent.resolve()))
        sys.argv = arguments
        main.__file__ = str(path.absolute())
        code = compile(path.read_bytes(), str(path.absolute()), "exec")
    return lambda: exec(code, main.__dict__)


def _python_path() -> list[str]:
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return [os.path.abspath(part) for part in given if part]


def watched(owner: int) -> None:
    """Have a process of its own look after the owner: a thread would not be forked along."""
    server = os.getpid()
    if os.fork():
        return
    try:
        while True:
            os.kill(owner, 0)
            time.sleep(1)
    except ProcessLookupError:
        os.kill(server, signal.SIGKILL)
        os._exit(0)


def main(kind: str, folder: Path) -> Callable[[], Any]:
    """Import, listen, fork."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # whoever started it may have blocked some
    watched(int((folder / "owner").read_text()))
    imported(kind)
    # A fork has its own folder, and its own PYTHONPATH.
    del sys.path[: 1 + len(_python_path())]
    assert threading.active_count() == 1, threading.enumerate()
    assert len(os.listdir("/proc/self/task")) == 1, "a fork takes only one thread along"
    gc.freeze()
    # Forks have memory enough, and leave little garbage: not to look for it saves a tenth.
    gc.set_threshold(10_000, 20, 50)
    address = folder / f"forked-{kind}"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{address}.partial")
    listener.listen(64)
    os.rename(f"{address}.partial", address)
    return serve(listener)


if __name__ == "__main__":
    # At the bottom of the stack, so that a program ends as any does: with its exit hooks.
    main(sys.argv[1], Path(sys.argv[2]))()
