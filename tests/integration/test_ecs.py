"""An ECS work pool as `fastroai bootstrap` makes it, up to AWS: moto stands for that, and asks for
the rights that docs/how-to/aws.md gives. What it can't show is that a container runs.
"""

from __future__ import annotations

import asyncio
import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect_aws.workers.ecs_worker import ECSWorker

from fastroai.cli import main
from fastroai.kit.scaffold import new_project
from tests.support.s3 import REGION, S3Service

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "aws.md"
SENTINEL = "sentinel-of-a-key-3d1f"


def policies() -> dict[str, dict[str, Any]]:
    """The policies of the page by their headings, for moto's account and region."""
    found = re.findall(r"^### (.+?)\n.*?^```json\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    return {name: json.loads(text.replace("eu-central-1", REGION)) for name, text in found}


@pytest.fixture
def aws(s3: S3Service) -> Any:
    """A client of one of AWS's services, with all rights."""

    def client(service: str, **credentials: str) -> Any:
        given = {"aws_access_key_id": "root", "aws_secret_access_key": "root"} | credentials
        return boto3.client(service, endpoint_url=s3.endpoint_url, region_name=REGION, **given)

    return client


@pytest.fixture
def worker_keys(aws: Any) -> dict[str, str]:
    """Keys of a user who may do what the page's worker may: moto knows resources and conditions of
    few services only, so that these are left out.
    """
    iam = aws("iam")
    name = f"worker-{uuid4().hex[:6]}"
    iam.create_user(UserName=name)
    statements = policies()["The worker"]["Statement"]
    actions = [action for one in statements for action in one["Action"]]
    allowed = {"Effect": "Allow", "Action": actions, "Resource": "*"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
    arn = iam.create_policy(PolicyName=name, PolicyDocument=document)["Policy"]["Arn"]
    iam.attach_user_policy(UserName=name, PolicyArn=arn)
    key = iam.create_access_key(UserName=name)["AccessKey"]
    return {
        "aws_access_key_id": key["AccessKeyId"],
        "aws_secret_access_key": key["SecretAccessKey"],
    }


@pytest.fixture
def rights_are_asked_for(s3: S3Service) -> Iterator[Any]:
    """From the call on, moto refuses what a user's policies don't allow."""

    def asks(first: str = "0") -> None:
        url = f"{s3.endpoint_url}/moto-api/reset-auth"
        content = {"Content-Type": "text/plain"}
        urllib.request.urlopen(urllib.request.Request(url, first.encode(), content)).close()

    yield asks
    asks("inf")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefect_api: str) -> str:
    """In the working directory, with the ECS pool of the page for production."""
    name = f"shop-{uuid4().hex[:8]}"
    new_project(tmp_path / name)
    monkeypatch.chdir(tmp_path / name)
    [text] = re.findall(r"^```yaml\n(work_pools:\n.*?)^```", PAGE.read_text(), re.M | re.S)
    text = text.replace("demo-production", f"{name}-production").replace("eu-central-1", REGION)
    Path("deployments/bootstrap.yaml").write_text(text)
    return name


async def test_the_pool_of_the_page_is_made_once_and_starts_tasks_with_the_rights_of_the_page(
    project: str,
    aws: Any,
    worker_keys: dict[str, str],
    rights_are_asked_for: Any,
    s3: S3Service,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    pool = f"{project}-production"
    assert await asyncio.to_thread(main, ["bootstrap"]) == 0
    assert f"create work pool '{pool}'" in capsys.readouterr().out
    await give_memory_to_the_container(pool)
    assert await asyncio.to_thread(main, ["bootstrap"]) == 0
    assert capsys.readouterr().out == "Nothing is to be changed.\n"
    ecs = aws("ecs")
    ecs.create_cluster(clusterName="demo")
    own = {"env": {"FASTROAI_UNPRICED": "fail"}}
    own["vpc_id"] = aws("ec2").describe_vpcs()["Vpcs"][0]["VpcId"]
    async with get_client() as client:
        flow = await client.create_flow_from_name("support")
        deployment = await client.create_deployment(
            flow, project, work_pool_name=pool, job_variables=own
        )
        run = await client.create_flow_run_from_deployment(deployment)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint_url)
    for name, value in worker_keys.items():
        monkeypatch.setenv(name.upper(), value)
    monkeypatch.setenv("OPENAI_API_KEY", SENTINEL)
    rights_are_asked_for()
    async with ECSWorker(work_pool_name=pool) as worker:
        await worker.get_and_submit_flow_runs()
    denied = aws("ecs", **worker_keys)
    with pytest.raises(denied.exceptions.ClientError, match="not authorized"):
        denied.delete_cluster(cluster="demo")
    rights_are_asked_for("inf")

    started = ecs.list_tasks(cluster="demo")["taskArns"]
    [task] = ecs.describe_tasks(cluster="demo", tasks=started, include=["TAGS"])["tasks"]
    definition = ecs.describe_task_definition(taskDefinition=task["taskDefinitionArn"])
    [container] = definition["taskDefinition"]["containerDefinitions"]
    arn = f"arn:aws:secretsmanager:{REGION}:123456789012:secret:demo/openai"
    assert container["secrets"] == [{"name": "OPENAI_API_KEY", "valueFrom": arn}]
    assert container["image"].endswith("/demo:1")
    assert definition["taskDefinition"]["executionRoleArn"].endswith("role/demo-execution")
    [overrides] = task["overrides"]["containerOverrides"]
    given = {one["name"]: one["value"] for one in overrides["environment"]}
    assert given["PREFECT__FLOW_RUN_ID"] == str(run.id)
    assert given["FASTROAI_UNPRICED"] == "fail"  # the deployment's, beside the pool's
    assert given["FASTROAI_RESULT_STORAGE"] == "s3://demo-results/results"
    assert SENTINEL not in json.dumps([task, definition], default=str)


async def give_memory_to_the_container(pool: str) -> None:
    """moto wants it there, where ECS takes that of the task."""
    async with get_client() as client:
        template = (await client.read_work_pool(pool)).base_job_template
        [container] = template["job_configuration"]["task_definition"]["containerDefinitions"]
        container["memory"] = 2048
        await client.update_work_pool(pool, WorkPoolUpdate(base_job_template=template))


def test_iam_takes_every_policy_of_the_page(aws: Any):
    found = policies()
    assert set(found) == {"The worker", "The execution role", "The task role", "Who deploys"}
    for name, document in found.items():
        policy = aws("iam").create_policy(
            PolicyName=f"{name.replace(' ', '-')}-{uuid4().hex[:6]}",
            PolicyDocument=json.dumps(document),
        )
        assert policy["Policy"]["IsAttachable"]
        for statement in document["Statement"]:
            assert "*" not in statement["Action"]
            assert not any(action.endswith(":*") for action in statement["Action"])


def test_a_run_reads_a_secret_of_secrets_manager_and_prefect_has_its_name_only(
    aws: Any, s3: S3Service, prefect_api: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint_url)
    aws("secretsmanager").create_secret(Name="demo/openai", SecretString=SENTINEL)
    [program] = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    defined: dict[str, Any] = {}
    exec(program, defined)
    defined["save_block"]()
    assert defined["openai_key"]() == SENTINEL
    with get_client(sync_client=True) as client:
        block = client.read_block_document_by_name("openai", "aws-secret")
    assert SENTINEL not in block.model_dump_json()
