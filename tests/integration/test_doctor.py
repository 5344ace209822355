"""`fastroai doctor`: names the fault of a broken set-up, and no other."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client

from fastroai.cli import main
from fastroai.kit.scaffold import new_project
from tests.support.prefect_server import prefect_settings
from tests.support.s3 import S3Service

DEAD = "http://127.0.0.1:9"
SECRET = "sentinel-of-a-key-41d7"
ENTRYPOINT = "deployments/entrypoints.py:support"


@dataclass
class SetUp:
    """A project that is deployed and has a worker, to be broken."""

    folder: Path
    set: pytest.MonkeyPatch
    s3: S3Service
    left: ExitStack = field(default_factory=ExitStack)

    def settings(self, **values: str) -> None:
        for name, value in values.items():
            self.set.setenv(name, value)

    def server(self, url: str) -> None:
        results = self.folder / "results"
        self.left.enter_context(prefect_settings(url, results, self.set))

    def write(self, name: str, text: str) -> None:
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text(text)

    def replace(self, name: str, old: str, new: str) -> None:
        text = (self.folder / name).read_text()
        assert old in text
        (self.folder / name).write_text(text.replace(old, new))


@pytest.fixture
def set_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefect_api: str, s3: S3Service
) -> Iterator[SetUp]:
    """A new project in the working directory; its server, storage and ledger work."""
    folder = tmp_path / f"doctor-{s3.bucket[-8:].strip('-')}"
    new_project(folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    found = SetUp(folder, monkeypatch, s3)
    # On a server that others deploy to as well.
    found.replace("prefect.yaml", "name: dev\n", f"name: {folder.name}\n")
    found.settings(
        FASTROAI_EXECUTOR="prefect",
        FASTROAI_RESULT_STORAGE=f"s3://{s3.bucket}/results",
        FASTROAI_LEDGER_URL=f"sqlite:///{folder}/ledger.db",
        **s3.environment,
    )
    with found.left, modules_of_projects():
        asyncio.run(deploy(folder.name))
        yield found


@contextmanager
def modules_of_projects() -> Iterator[None]:
    """Those of this repository are not there, and those that are imported do not stay."""
    names = ("flows", "deployments", "entrypoints")
    ours = {name: sys.modules.pop(name) for name in list(sys.modules) if name.startswith(names)}
    yield
    for name in [name for name in sys.modules if name.startswith(names)]:
        del sys.modules[name]
    sys.modules.update(ours)


async def deploy(project: str) -> None:
    """What `prefect deploy -n dev` and a worker do on a server."""
    from fastroai.executors.prefect import make_process_pools

    pools = [f"{project}-{name}" for name in ("dev", "staging", "production")]
    async with get_client() as client:
        await make_process_pools(client, pools)
        await client.send_worker_heartbeat(pools[0], "a worker", heartbeat_interval_seconds=300)
        flow = await client.create_flow_from_name(f"support-of-{project}")
        await client.create_deployment(flow, name=project, entrypoint=ENTRYPOINT)


def examined(capsys: pytest.CaptureFixture[str]) -> tuple[int, list[dict[str, Any]]]:
    """The command's exit code and findings."""
    capsys.readouterr()
    code = main(["doctor", "--json"])
    written = capsys.readouterr()
    assert SECRET not in written.out + written.err
    content = json.loads(written.out)
    assert content["ok"] == (code == 0)
    return code, content["findings"]


def test_a_set_up_that_works_has_no_fault(set_up: SetUp, capsys: pytest.CaptureFixture[str]):
    code, findings = examined(capsys)
    assert code == 0, findings
    assert {one["check"] for one in findings if one["status"] == "ok"} >= {
        "versions", "settings", "project", "prefect", "deployments", "work pools",
        "result storage", "ledger",
    }  # fmt: skip
    assert all(one["status"] in ("ok", "skipped") for one in findings), findings
    assert set_up.s3.keys() == []


def on_server(act: Callable[[Any, str], Any]) -> Callable[[SetUp], None]:
    """Change something on the server, about the pool of `dev`."""

    async def change(name: str) -> None:
        async with get_client() as client:
            await act(client, name)

    return lambda set_up: asyncio.run(change(f"{set_up.folder.name}-dev"))


async def pause(client: Any, pool: str) -> None:
    from prefect.client.schemas.actions import WorkPoolUpdate

    await client.update_work_pool(pool, WorkPoolUpdate(is_paused=True))


async def lose_worker(client: Any, pool: str) -> None:
    await client.delete_work_pool(pool)
    from fastroai.executors.prefect import make_process_pools

    await make_process_pools(client, [pool])


async def undeploy(client: Any, pool: str) -> None:
    project = pool.removesuffix("-dev")
    name = f"support-of-{project}/{project}"
    await client.delete_deployment((await client.read_deployment_by_name(name)).id)


def wrong_fastapi(set_up: SetUp) -> None:
    set_up.write(
        "site/fastapi-0.160.0.dist-info/METADATA",
        "Metadata-Version: 2.1\nName: fastapi\nVersion: 0.160.0\n",
    )
    set_up.set.syspath_prepend(set_up.folder / "site")


def asks(model: str) -> Callable[[SetUp], None]:
    return lambda set_up: set_up.settings(FASTROAI_MODEL=model)


FAULTS: dict[str, tuple[Callable[[SetUp], None], str, str]] = {
    "executor": (
        lambda s: s.settings(FASTROAI_EXECUTOR="cloud"),
        "settings",
        "FASTROAI_EXECUTOR='cloud'",
    ),
    "form of storage": (
        lambda s: s.settings(FASTROAI_RESULT_STORAGE="s3:bucket"),
        "settings",
        "FASTROAI_RESULT_STORAGE='s3:bucket'",
    ),
    "short secret": (
        lambda s: s.settings(FASTROAI_RESULT_SECRET=SECRET[:9]),
        "settings",
        r"FASTROAI_RESULT_SECRET=\*\*\*",
    ),
    "version": (wrong_fastapi, "versions", r"fastapi 0\.160\.0 .*pip install 'fastapi[^']*<0\.151"),
    "no yaml": (lambda s: s.write("prefect.yaml", "a: ["), "project", "prefect.yaml can't be read"),
    "no deployments": (
        lambda s: s.write("prefect.yaml", "name: x\n"),
        "project",
        "has no list of deployments",
    ),
    "missing entrypoint": (
        lambda s: s.replace("prefect.yaml", "entrypoints.py", "entrypoint.py"),
        "project",
        "'deployments/entrypoint.py:support', and there is no such file",
    ),
    "missing flow": (
        lambda s: s.replace("deployments/entrypoints.py", "support = ", "helpdesk = "),
        "project",
        "has no 'support'.*helpdesk",
    ),
    "import": (
        lambda s: s.write("flows/deps.py", "import no_such_package\n"),
        "project",
        "can't be imported.*no_such_package",
    ),
    "dead server": (
        lambda s: s.server(f"{DEAD}/api"),
        "prefect",
        f"PREFECT_API_URL='{DEAD}/api'.*server start",
    ),
    "url without api": (
        lambda s: s.server(current_server().removesuffix("/api")),
        "prefect",
        r"did you mean http://127\.0\.0\.1:\d+/api\?",
    ),
    "not deployed": (on_server(undeploy), "deployments", "Nothing .*`prefect deploy --all`"),
    "no pool": (
        on_server(lambda client, pool: client.delete_work_pool(pool)),
        "work pools",
        "does not exist.*prefect work-pool create --type process doctor-",
    ),
    "paused pool": (on_server(pause), "work pools", "is paused.*prefect work-pool resume doctor-"),
    "no worker": (
        on_server(lose_worker),
        "work pools",
        "has no worker.*prefect worker start --pool doctor-",
    ),
    "no bucket": (
        lambda s: s.settings(FASTROAI_RESULT_STORAGE="s3://no-such-bucket/results"),
        "result storage",
        "no-such-bucket",
    ),
    "dead endpoint": (
        lambda s: s.settings(FASTROAI_S3_ENDPOINT_URL=DEAD, FASTROAI_S3_CONNECT_TIMEOUT="0.2"),
        "result storage",
        "127.0.0.1:9",
    ),
    "file for a folder": (
        lambda s: (s.write("taken", ""), s.settings(FASTROAI_RESULT_STORAGE="./taken/results")),
        "result storage",
        "taken/results",
    ),
    "no database": (
        lambda s: s.write("ledger.db", "This is no database, although it is long enough. " * 40),
        "ledger",
        "file is not a database",
    ),
    "scheme of ledger": (
        lambda s: s.settings(FASTROAI_LEDGER_URL="mysql://user@host/ledger"),
        "ledger",
        "mysql",
    ),
    "silent ledger": (
        lambda s: s.settings(FASTROAI_LEDGER_URL=f"postgresql://me:{SECRET}@127.0.0.1:9/ledger"),
        "ledger",
        "can't be used.*(Connect call failed|refused)",
    ),
    "no key": (asks("openai:gpt-5-mini"), "credentials", "OPENAI_API_KEY is not set.*workers"),
    "no provider": (asks("opnai:gpt-5-mini"), "credentials", "opnai:gpt-5-mini can't be used"),
    "price file": (
        lambda s: s.settings(FASTROAI_PRICES="no-such-file.json"),
        "prices",
        "no-such-file.json",
    ),
    "no price": (
        lambda s: s.settings(
            FASTROAI_MODEL="openai:gpt-99-nano", FASTROAI_UNPRICED="fail", OPENAI_API_KEY=SECRET
        ),
        "prices",
        "No price of openai:gpt-99-nano is known: requests are refused.*FASTROAI_PRICES",
    ),
}


def current_server() -> str:
    from prefect.settings import PREFECT_API_URL

    return str(PREFECT_API_URL.value())


SLOW = ("dead endpoint", "file for a folder")
"""These are tried again before they count as failures."""
ALIKE = (
    "form of storage",
    "no deployments",
    "missing entrypoint",
    "import",
    "no pool",
    "paused pool",
    "scheme of ledger",
    "no provider",
    "price file",
)
"""Of each check another fault is in `make test`."""


@pytest.mark.parametrize(
    "fault", [pytest.param(f, marks=pytest.mark.long if f in SLOW + ALIKE else ()) for f in FAULTS]
)
def test_the_fault_of_a_broken_set_up_is_named_with_what_to_do(
    fault: str, set_up: SetUp, capsys: pytest.CaptureFixture[str]
):
    break_it, check, said = FAULTS[fault]
    break_it(set_up)
    code, findings = examined(capsys)
    failed = [one for one in findings if one["status"] == "failed"]
    assert code == 1
    assert {one["check"] for one in failed} == {check}, failed
    text = " ".join(f"{one['found']} {one['remedy']}" for one in failed)
    assert re.search(said, text, re.DOTALL), text


def test_what_works_otherwise_than_most_want_is_no_failure(
    set_up: SetUp, capsys: pytest.CaptureFixture[str]
):
    set_up.server("")
    set_up.settings(FASTROAI_MODEL="openai:gpt-99-nano", OPENAI_API_KEY=SECRET)
    code, findings = examined(capsys)
    warned = {one["check"]: one["found"] for one in findings if one["status"] == "warning"}
    assert code == 0
    assert "PREFECT_API_URL is not set" in warned["prefect"]
    assert "booked as unpriced, not as $0" in warned["prices"]


def test_for_people_each_finding_is_a_line_and_below_it_what_to_do(
    set_up: SetUp, capsys: pytest.CaptureFixture[str]
):
    set_up.settings(FASTROAI_MODEL="openai:gpt-5-mini")
    capsys.readouterr()
    assert main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    [number] = [n for n, line in enumerate(lines) if line.startswith("failed")]
    assert "credentials" in lines[number]
    assert lines[number + 1].strip().startswith("→ Set OPENAI_API_KEY")


def test_in_memory_nothing_is_asked_that_a_run_would_not_need(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FASTROAI_EXECUTOR", "memory")
    code, findings = examined(capsys)
    assert code == 0
    skipped = {one["check"] for one in findings if one["status"] == "skipped"}
    assert skipped >= {"prefect", "result storage", "ledger", "project"}
    assert list(tmp_path.iterdir()) == []
