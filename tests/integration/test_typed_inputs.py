"""A deployed flow's form: fields with what they mean and may be; bad input is refused when the run
is created; what it may read by URI.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import pytest
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectHTTPStatusError
from prefect.utilities.callables import parameter_schema
from pydantic import BaseModel, ConfigDict, Field

from fastroai import Pipeline, StepContext, step
from fastroai.errors import InputValidationError
from fastroai.settings import load_settings
from fastroai.storage.sources import check_readable
from flows.documents import MAX_BYTES, DocumentError, read_documents
from tests.support.deployed_runs import deployed, work


class Order(BaseModel):
    """What is ordered."""

    model_config = ConfigDict(extra="forbid")

    title: str = Field(min_length=3, max_length=20, description="What it says on the sack.")
    sacks: int = Field(default=2, ge=1, le=9, description="How many.")
    grain: Literal["rye", "oats"] = Field(default="rye", description="Which.")


@step
def reads(context: StepContext[None]) -> str:
    check_readable(context.get_input("title"), load_settings())
    return "read"


ordering: Pipeline[None, Order, str] = Pipeline("ordering", {"reads": reads}, input_type=Order)


def test_the_form_has_description_default_limits_and_choices_of_each_field():
    [form] = parameter_schema(ordering.to_flow()).definitions.values()
    title, sacks, grain = (form["properties"][name] for name in ("title", "sacks", "grain"))
    assert title["description"] == "What it says on the sack."
    assert (title["minLength"], title["maxLength"]) == (3, 20)
    assert (sacks["default"], sacks["minimum"], sacks["maximum"]) == (2, 1, 9)
    assert (grain["default"], grain["enum"]) == ("rye", ["rye", "oats"])
    assert form["required"] == ["title"]


@pytest.mark.parametrize(
    ("inputs", "named"),
    [
        ({"title": "Flour", "sakcs": 1}, "sakcs"),
        ({"title": "Flour", "sacks": 99}, "sacks"),
        ({"title": "Flour", "sacks": "many"}, "sacks"),
        ({"title": "Flour", "grain": "barley"}, "grain"),
        ({"title": "F"}, "title"),
        ({"sacks": 1}, "title"),
    ],
)
async def test_bad_input_is_refused_when_the_run_is_created_and_the_field_is_named(
    prefect_api: str, inputs: dict[str, Any], named: str
):
    flow = ordering.to_flow()
    async with get_client() as client:
        deployment = await client.create_deployment(
            flow_id=await client.create_flow(flow),
            name="typed",
            parameter_openapi_schema=parameter_schema(flow).model_dump(),
            enforce_parameter_schema=True,
        )
        with pytest.raises(PrefectHTTPStatusError) as refused:
            await client.create_flow_run_from_deployment(deployment, parameters={"inputs": inputs})
        assert named in refused.value.response.text
        good = {"inputs": {"title": "Flour", "grain": "oats"}}
        assert await client.create_flow_run_from_deployment(deployment, parameters=good)


async def test_a_deployed_run_reads_its_own_folder_only_and_the_refusal_says_what_to_do(
    prefect_api: str, tmp_path: Path
):
    flow = ordering.to_flow()
    (tmp_path / "own.txt").write_text("own")
    assert (await work(flow, await deployed(flow, {"title": "own.txt"}))).output == "read"
    for title in ("/etc/passwd", "s3://secret", "https://10.0.0.1/"):
        with pytest.raises(Exception, match="FASTROAI_READABLE") as refused:
            await work(flow, await deployed(flow, {"title": title}))
        assert isinstance(refused.value.__cause__, InputValidationError)
    # The same pipeline, run by the program itself.
    assert (await ordering.execute({"title": "/etc/passwd"})).output == "read"


@contextmanager
def web(folder: Path, pages: dict[str, bytes | str]) -> Iterator[str]:
    """A web server with TLS, by path what it answers: a body, or where it redirects to."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = pages.get(self.path, b"")
            self.send_response(302 if isinstance(page, str) else 200)
            if isinstance(page, str):
                self.send_header("Location", page)
            self.end_headers()
            self.wfile.write(b"" if isinstance(page, str) else page)

        def log_message(self, *arguments: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate(folder))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"https://localhost:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def certificate(folder: Path) -> Path:
    """A certificate of localhost with its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    written = folder / "localhost.pem"
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    written.write_bytes(private + made.public_bytes(pem))
    return written


def test_a_document_is_read_from_the_web_but_not_by_a_redirect_to_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pages: dict[str, bytes | str] = {
        "/reports/may.html": b"<p>The mill turns.</p>",
        "/reports/moved": "/reports/may.html",
        "/reports/away": "/secret",
        "/reports/large": b"x" * (MAX_BYTES + 1),
        "/secret": b"secret",
    }
    with web(tmp_path, pages) as url:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "localhost.pem"))
        monkeypatch.setenv("FASTROAI_READABLE", f'["{url}/reports"]')
        for path in ("may.html", "moved"):
            [document] = read_documents(f"{url}/reports/{path}", 5).read
            assert "The mill turns." in document.text
        for location in (f"{url}/reports/away", f"{url}/secret"):
            with pytest.raises(InputValidationError, match="is not among what this run may read"):
                read_documents(location, 5)
        with pytest.raises(DocumentError, match="more than 2,000,000 bytes"):
            read_documents(f"{url}/reports/large", 5)


def test_a_link_in_a_folder_to_elsewhere_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FASTROAI_READABLE", '["docs"]')
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("text")
    (tmp_path / "secret.md").write_text("secret")
    (tmp_path / "docs" / "b.md").symlink_to(tmp_path / "secret.md")
    found = read_documents("docs", 5)
    assert [document.name for document in found.read] == ["a.md"]
    assert found.left_out == ["b.md: a link to what this run may not read"]
