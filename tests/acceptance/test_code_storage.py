"""Code in S3: a deployment writes it there, and a worker runs it in another folder that has nothing
but the package; a secret reaches the run, and stands nowhere else than in its block.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client

from fastroai.kit.scaffold import new_project
from tests.acceptance.conftest import PATIENCE, REPOSITORY
from tests.integration.read_back import everything_stored, read_run
from tests.support import forked
from tests.support.s3 import S3Service

SENTINEL = "sentinel-of-a-token-52c8"
READS_SECRET = f"""
import os

if "PREFECT__FLOW_RUN_ID" in os.environ:
    assert os.environ.get("SHOP_TOKEN") == "{SENTINEL}", "the secret did not reach the run"
    assert os.environ.get("FASTROAI_UNPRICED") == "fail", "the deployment's own did not"
"""


@pytest.mark.long
@pytest.mark.usefixtures("logs_on_server")
async def test_a_worker_in_another_folder_runs_what_was_deployed_to_s3(
    tmp_path: Path, prefect_api: str, s3: S3Service
):
    project, elsewhere = tmp_path / "shop", tmp_path / "elsewhere"
    new_project(project)
    elsewhere.mkdir()
    (project / ".env").write_text("SECRET_OF_SHOP=sentinel\n")
    file = project / "prefect.yaml"
    text = file.read_text().replace("[*support, *production]", "[*support, *production, *from_s3]")
    file.write_text(text.replace("bucket: shop-code", f"bucket: {s3.bucket}"))
    (project / "deployments" / "bootstrap.yaml").write_text("secrets: {SHOP_TOKEN: shop-token}\n")
    with (project / "deployments" / "entrypoints.py").open("a") as entrypoints:
        entrypoints.write(READS_SECRET)
    variables = {
        "AWS_ENDPOINT_URL_S3": s3.endpoint_url,
        "AWS_ACCESS_KEY_ID": s3.access_key_id,
        "AWS_SECRET_ACCESS_KEY": s3.secret_access_key,
        "AWS_DEFAULT_REGION": s3.region,
        "PYTHONPATH": str(REPOSITORY),
        "FASTROAI_RESULT_STORAGE": f"s3://{s3.bucket}/results",
        **s3.environment,
    }

    def run(
        module: str, folder: Path, *arguments: str, **more: str
    ) -> subprocess.CompletedProcess[str]:
        return forked.run(
            [sys.executable, "-m", module, *arguments],
            cwd=folder,
            env=os.environ | variables | {"PWD": str(folder)} | more,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    prefect = partial(run, "prefect")

    async with get_client() as client:
        made = run("fastroai", project, "bootstrap", SHOP_TOKEN=SENTINEL)
        assert made.returncode == 0, made.stderr
        deployed = prefect(project, "--no-prompt", "deploy", "-n", "production")
        assert deployed.returncode == 0, deployed.stdout + deployed.stderr
        written = s3.keys("shop/")
        assert "shop/flows/support.py" in written
        assert "shop/.env" not in written
        shutil.rmtree(project)
        pool = await client.read_work_pool("shop-production")
        deployment = await client.read_deployment_by_name("support/production")
        flow_run = await client.create_flow_run_from_deployment(deployment.id)
    worked = prefect(elsewhere, "worker", "start", "--pool", "shop-production", "--run-once")
    stored = await read_run(flow_run.id, tasks=2, artifacts=2)
    assert stored.flow_run.state_name == "Completed", worked.stdout + worked.stderr
    pool_and_deployment = f"{deployment.model_dump_json()}{pool.model_dump_json()}"
    everything = await everything_stored(flow_run.id)
    assert SENTINEL not in everything + pool_and_deployment + worked.stdout + worked.stderr
    assert len(s3.results("results")) == 2
    assert list(elsewhere.iterdir()) == []
