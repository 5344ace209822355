"""Code in S3: a deployment writes it there, and a worker runs it in another folder that has nothing
but the package.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client

from fastroai.executors.prefect import make_process_pools
from fastroai.kit.scaffold import new_project
from tests.acceptance.conftest import PATIENCE, REPOSITORY
from tests.integration.read_back import read_run
from tests.support import forked
from tests.support.s3 import S3Service


@pytest.mark.long
async def test_a_worker_in_another_folder_runs_what_was_deployed_to_s3(
    tmp_path: Path, prefect_api: str, s3: S3Service
):
    project, elsewhere = tmp_path / "shop", tmp_path / "elsewhere"
    new_project(project)
    elsewhere.mkdir()
    (project / ".env").write_text("SECRET_OF_SHOP=sentinel\n")
    file = project / "prefect.yaml"
    text = file.read_text().replace("[*support, *staging]", "[*support, *staging, *from_s3]")
    file.write_text(text.replace("bucket: shop-code", f"bucket: {s3.bucket}"))
    variables = {
        "AWS_ENDPOINT_URL_S3": s3.endpoint_url,
        "AWS_ACCESS_KEY_ID": s3.access_key_id,
        "AWS_SECRET_ACCESS_KEY": s3.secret_access_key,
        "AWS_DEFAULT_REGION": s3.region,
        "PYTHONPATH": str(REPOSITORY),
        "FASTROAI_RESULT_STORAGE": f"s3://{s3.bucket}/results",
        **s3.environment,
    }

    def prefect(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        return forked.run(
            [sys.executable, "-m", "prefect", *arguments],
            cwd=folder,
            env=os.environ | variables | {"PWD": str(folder)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    async with get_client() as client:
        await make_process_pools(client, ["shop-staging"])
        deployed = prefect(project, "--no-prompt", "deploy", "-n", "staging")
        assert deployed.returncode == 0, deployed.stdout + deployed.stderr
        written = s3.keys("shop/")
        assert "shop/flows/support.py" in written
        assert "shop/.env" not in written
        shutil.rmtree(project)
        deployment = await client.read_deployment_by_name("support/staging")
        run = await client.create_flow_run_from_deployment(deployment.id)
    worked = prefect(elsewhere, "worker", "start", "--pool", "shop-staging", "--run-once")
    stored = await read_run(run.id, tasks=2, artifacts=2)
    assert stored.flow_run.state_name == "Completed", worked.stdout + worked.stderr
    assert len(s3.results("results")) == 2
    assert list(elsewhere.iterdir()) == []
