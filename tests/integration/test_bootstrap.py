"""`fastroai bootstrap`: makes what is missing on the server, says so first, and the second time
changes nothing.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from uuid import uuid4

import pytest
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectHTTPStatusError

from fastroai.cli import main
from fastroai.kit.scaffold import new_project

SENTINEL = "sentinel-of-a-secret-77b0"
DOCS = Path(__file__).parents[2] / "docs" / "how-to"


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefect_api: str) -> str:
    """A new project's, in the working directory, with essentials of this name."""
    name = f"shop-{uuid4().hex[:8]}"
    new_project(tmp_path / name)
    monkeypatch.chdir(tmp_path / name)
    write(name, slots=3)
    return name


def write(name: str, slots: int) -> None:
    Path("deployments/bootstrap.yaml").write_text(
        f"variables:\n  {name.replace('-', '_')}: {{open: [9, 17]}}\n"
        f"concurrency_limits:\n  {name}: {slots}\n"
        f"secrets:\n  SHOP_TOKEN: {name}-token\n"
    )


def bootstrap(capsys: pytest.CaptureFixture[str], *options: str, code: int = 0) -> list[str]:
    """The lines that the command writes."""
    capsys.readouterr()
    assert main(["bootstrap", *options]) == code
    written = capsys.readouterr()
    assert SENTINEL not in written.out + written.err
    return (written.err if code else written.out).splitlines()


def test_what_is_missing_is_made_and_the_second_time_nothing_is_changed(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("SHOP_TOKEN", SENTINEL)
    planned = bootstrap(capsys, "--dry-run")
    assert planned == [
        f"create Secret block '{name}-token'",
        f"create variable '{name.replace('-', '_')}'",
        f"create concurrency limit '{name}'",
        *[f"create work pool '{name}-{one}'" for one in ("dev", "staging", "production")],
    ]
    assert bootstrap(capsys, "--dry-run") == planned, "nothing was made"
    assert bootstrap(capsys) == planned
    assert bootstrap(capsys) == ["Nothing is to be changed."]
    # As where the value is not known: it is on the server.
    monkeypatch.delenv("SHOP_TOKEN")
    assert bootstrap(capsys) == ["Nothing is to be changed."]


def test_what_differs_is_changed_and_nothing_else(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("SHOP_TOKEN", "an older one")
    bootstrap(capsys)
    write(name, slots=5)
    monkeypatch.setenv("SHOP_TOKEN", SENTINEL)
    changes = [f"change Secret block '{name}-token'", f"change concurrency limit '{name}'"]
    assert bootstrap(capsys) == changes
    assert bootstrap(capsys) == ["Nothing is to be changed."]
    assert Secret.load(f"{name}-token").get() == SENTINEL


async def test_of_a_secret_the_pool_has_the_blocks_name_only(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("SHOP_TOKEN", SENTINEL)
    await asyncio.to_thread(bootstrap, capsys)
    async with get_client() as client:
        pool = await client.read_work_pool(f"{name}-dev")
    template = pool.base_job_template
    assert template["job_configuration"]["env"] == {"SHOP_TOKEN": "{{ SHOP_TOKEN }}"}
    of_secret = template["variables"]["properties"]["SHOP_TOKEN"]
    assert of_secret["default"] == f"{{{{ prefect.blocks.secret.{name}-token }}}}"
    assert SENTINEL not in pool.model_dump_json()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("secrets:\n  SHOP_TOKEN: no-such-token\n", "SHOP_TOKEN is not set"),
        ("secret:\n  SHOP_TOKEN: x\n", "secret: Extra inputs"),
        ("concurrency_limits:\n  a: many\n", "concurrency_limits.a"),
        ("a: [", "can't be read"),
        ("- a\n", "can't be read"),
    ],
)
def test_what_can_not_be_made_is_said_before_anything_is(
    name: str, text: str, said: str, capsys: pytest.CaptureFixture[str]
):
    Path("deployments/bootstrap.yaml").write_text(text)
    assert said in " ".join(bootstrap(capsys, code=1))
    write(name, slots=1)
    assert f"create work pool '{name}-dev'" not in bootstrap(capsys, code=1)


def describe_pool_of(page: str, name: str, more: str = "") -> None:
    """The work pool of a page of the docs, for this project."""
    text = (DOCS / page).read_text()
    [block] = re.findall(r"^```yaml\n(work_pools:\n.*?)^```", text, re.MULTILINE | re.DOTALL)
    text = block.replace("demo-production", f"{name}-production")
    Path("deployments/bootstrap.yaml").write_text(text + more)


async def test_a_pool_for_kubernetes_names_the_secret_and_a_deployment_keeps_to_its_variables(
    name: str, capsys: pytest.CaptureFixture[str]
):
    describe_pool_of("kubernetes.md", name)
    assert f"create work pool '{name}-production'" in await asyncio.to_thread(bootstrap, capsys)
    assert await asyncio.to_thread(bootstrap, capsys) == ["Nothing is to be changed."]
    async with get_client() as client:
        pool = await client.read_work_pool(f"{name}-production")
        flow = await client.create_flow_from_name("support")
        await client.create_deployment(
            flow, name, work_pool_name=pool.name, job_variables={"memory_limit": "4Gi"}
        )
        with pytest.raises(PrefectHTTPStatusError, match="memory_limit"):
            await client.create_deployment(
                flow, f"{name}-2", work_pool_name=pool.name, job_variables={"memory_limit": []}
            )
    manifest = pool.base_job_template["job_configuration"]["job_manifest"]
    [container] = manifest["spec"]["template"]["spec"]["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": "demo-keys"}}]
    properties = pool.base_job_template["variables"]["properties"]
    assert properties["image"]["default"] == "registry.example.com/demo:1"
    assert container["image"] == "{{ image }}"


def test_a_pool_for_docker_is_made_and_its_secrets_are_blocks(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("SHOP_TOKEN", SENTINEL)
    describe_pool_of("docker.md", name, f"secrets: {{SHOP_TOKEN: {name}-token}}\n")
    assert f"create work pool '{name}-production'" in bootstrap(capsys)
    assert bootstrap(capsys) == ["Nothing is to be changed."]


@pytest.mark.parametrize(
    ("pool", "said"),
    [
        ("{type: ecs}", "Name under its own `secrets` where the values of SHOP_TOKEN are"),
        ("{type: cloud-run, secrets: {SHOP_TOKEN: x}}", "no place for it"),
        ("{type: steam}", "knows no type 'steam'"),
        *(
            pytest.param(pool, said, marks=pytest.mark.long)
            for pool, said in (
                ("{type: process, secrets: {SHOP_TOKEN: x}}", "name its secrets under `secrets`"),
                (
                    "{type: ecs, defaults: {imag: x}, secrets: {SHOP_TOKEN: x}}",
                    "no job variable 'imag'",
                ),
            )
        ),
    ],
)
def test_a_pool_that_can_not_be_as_described_is_refused_before_anything_is_made(
    name: str,
    pool: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv("SHOP_TOKEN", SENTINEL)
    text = f"work_pools: {{{name}-production: {pool}}}\nsecrets: {{SHOP_TOKEN: {name}-token}}\n"
    Path("deployments/bootstrap.yaml").write_text(text)
    assert said in " ".join(bootstrap(capsys, code=1))
    write(name, slots=1)
    assert f"create Secret block '{name}-token'" in bootstrap(capsys, "--dry-run")
    # A pool that is there keeps its type.
    bootstrap(capsys)
    Path("deployments/bootstrap.yaml").write_text(
        f"work_pools: {{{name}-production: {{type: ecs, defaults: {{cpu: 256}}}}}}\n"
    )
    assert "a pool's type can't be changed" in " ".join(bootstrap(capsys, code=1))
