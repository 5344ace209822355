"""`FASTROAI_*` settings: what the environment says, validated."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from .environment import DOTENV, PREFIX
from .errors import SettingsError
from .provider_limits import ProviderLimit, read_provider_limits
from .providers import PROVIDERS, canonical_provider, host_and_port, host_key
from .redaction import redact_patterns

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

ExecutorName = Literal["prefect", "memory"]
CachePolicyName = Literal["run", "inputs", "off"]


class FastroAISettings(BaseSettings):
    """Settings of a deployment, read from `FASTROAI_*` variables and a `.env` file; variables take
    precedence.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_file=DOTENV, env_ignore_empty=True, extra="ignore"
    )

    executor: ExecutorName = Field(
        default="prefect",
        description=("Default executor: `prefect`, or `memory` (in process, without a server)."),
    )
    result_storage: str | None = Field(
        default=None,
        description=(
            "Where step results are stored: `s3://bucket/prefix`, any URL that fsspec knows "
            "(`gs://…`, `az://…`), a local folder, or a saved Prefect block as `block-type/name`. "
            "Unset: Prefect's local storage folder."
        ),
    )
    cache_policy: CachePolicyName = Field(
        default="run",
        description=(
            "Default cache policy of steps: reuse results within the same `run`, whenever code and "
            "`inputs` are the same, or never (`off`)."
        ),
    )
    result_secret: SecretStr | None = Field(
        default=None,
        min_length=16,
        description=(
            "Key that signs stored results, at least 16 characters. Results without a valid "
            "signature are ignored. Unset: results have a checksum only."
        ),
    )
    result_compression: Literal["none", "gzip"] = Field(
        default="none",
        description="Compression of new results: `none` or `gzip`. Both can be read.",
    )
    result_retry_seconds: float = Field(
        default=30.0,
        ge=0,
        description=(
            "Seconds to keep retrying a failed write of a result before the run ends without it."
        ),
    )
    s3_endpoint_url: str | None = Field(
        default=None, description="URL of an S3-compatible service, for example MinIO. Unset: AWS."
    )
    s3_region: str | None = Field(
        default=None, description="AWS region of the bucket. Unset: the usual AWS chain."
    )
    s3_access_key_id: SecretStr | None = Field(
        default=None, description="Access key id for the bucket. Unset: the usual AWS chain."
    )
    s3_secret_access_key: SecretStr | None = Field(
        default=None, description="Secret access key for the bucket. Unset: the usual AWS chain."
    )
    s3_connect_timeout: float = Field(
        default=2.0, gt=0, description="Seconds to wait for a connection to S3."
    )
    s3_read_timeout: float = Field(
        default=10.0, gt=0, description="Seconds to wait for a response from S3."
    )
    artifact_timeout: float = Field(
        default=15.0,
        gt=0,
        description=(
            "Seconds that the end of a run keeps trying to write its cost tables to Prefect while "
            "none is accepted. The missing ones are named in a warning."
        ),
    )
    ledger_url: SecretStr | None = Field(
        default=None,
        description=(
            "Database in which every model request is booked: `sqlite:///path`, "
            "`postgresql://user@host/name` or `memory://` (this process only). Unset: "
            "`~/.fastroai/ledger.db` for runs under Prefect; runs in memory book in their results "
            "only."
        ),
    )
    ledger_required: bool = Field(
        default=True,
        description=(
            "Refuse to send requests while the ledger can't be written. `false`: runs continue; "
            "their entries are saved in `~/.fastroai/unwritten` and written later."
        ),
    )
    lease_seconds: float = Field(
        default=30.0,
        ge=0.1,
        description=(
            "Seconds without a heartbeat after which a run counts as dead: another run with its "
            "`run_key` may take over, and `fastroai runs resume` may resume it."
        ),
    )
    model: str | None = Field(
        default=None,
        description=(
            "Model of the jobs in flows/, as `provider:model` or `offline`. Unset: "
            "`openai:gpt-5-mini` with an OPENAI_API_KEY, else the offline model, which simulates."
        ),
    )
    provider_hosts: Annotated[dict[str, str], NoDecode] = Field(
        default_factory=dict,
        description=(
            'Maps API hosts to billing providers, as JSON: `{"127.0.0.1:8765": "openai"}`. A URL '
            "without a port has 443 or 80; a host without a port matches any. Unset: hosts of the "
            "price list."
        ),
    )
    rate_limits: Annotated[dict[str, ProviderLimit], NoDecode] = Field(
        default_factory=dict,
        description=(
            "What providers allow, by `provider` or `provider:model`, so that requests wait and "
            "are not refused: `openai rpm=500 tpm=200k; openai:gpt-5-mini concurrency=20`, or as "
            "JSON. Unset: only what answers say is kept to."
        ),
    )
    unpriced: Literal["warn", "fail"] = Field(
        default="warn",
        description=(
            "How to handle requests to models without a known price: `warn` sends them and books "
            "them as unpriced, `fail` refuses them before they are sent."
        ),
    )
    prices: Path | None = Field(
        default=None,
        description=(
            "File with prices of your own, JSON or YAML: `models` with rates, and `discounts`. "
            "Unset: list prices."
        ),
    )
    readable: Annotated[tuple[str, ...] | None, NoDecode] = Field(
        default=None,
        description=(
            'What inputs may name to be read, as a JSON list of folders and URIs: `["docs", '
            '"s3://bucket/prefix", "https://example.com/reports"]`. Unset: runs of deployments '
            "read the folder they run in, other runs anything."
        ),
    )
    openai_api_key: SecretStr | None = Field(
        default=None,
        validation_alias="OPENAI_API_KEY",
        description="OpenAI's API key, under the name its SDK uses.",
    )

    @field_validator("result_storage")
    @classmethod
    def _check_result_storage(cls, value: str | None) -> str | None:
        if value is not None and not names_storage(value):
            raise ValueError(f"not a valid storage: {STORAGE_FORMS}")
        return value

    @field_validator("readable", mode="before")
    @classmethod
    def _read_readable(cls, value: object) -> object:
        return _places(value)

    @field_validator("rate_limits", mode="before")
    @classmethod
    def _read_rate_limits(cls, value: object) -> dict[str, ProviderLimit]:
        return read_provider_limits(value)

    @field_validator("provider_hosts", mode="before")
    @classmethod
    def _read_provider_hosts(cls, value: object) -> dict[str, str]:
        return _provider_hosts(value)


def load_settings() -> FastroAISettings:
    """The current settings, parsed again only when the environment or `.env` changed.

    Raises:
        SettingsError: A variable has an invalid value.
    """
    global _cached
    # By name: to walk the whole environment takes longer than all the rest.
    key: list[object] = list(map(os.environ.get, _VARIABLES))
    with suppress(OSError):
        stat = os.stat(DOTENV)
        key += [str(Path(DOTENV).absolute()), stat.st_mtime_ns, stat.st_size]
    if _cached is None or _cached[0] != key:
        try:
            _cached = (key, FastroAISettings())
        except ValidationError as error:
            raise SettingsError(_explain(error)) from error
    return _cached[1]


def secret_values() -> set[str]:
    """The secrets that this process knows of: of settings, of environment variables that are named
    like credentials, and the passwords in URLs among them.
    """
    found: set[str] = set()
    with suppress(SettingsError):
        settings = load_settings()
        for name in type(settings).model_fields:
            value = getattr(settings, name)
            if isinstance(value, SecretStr):
                found |= _secrets_in(value.get_secret_value())
    for name, text in os.environ.items():
        if "://" in text or _CREDENTIAL.search(name):
            found |= _secrets_in(text)
    return found


_CREDENTIAL = re.compile(
    "API_?KEY|ACCESS_?KEY|(PRIVATE|SIGNING|ENCRYPTION|SUBSCRIPTION)_KEY|SECRET|PASSWORD|PASSWD"
    "|PASSPHRASE|AUTH_STRING|TOKEN$",
    re.IGNORECASE,
)
_PASSWORD_BEFORE_HOST = re.compile(r"://[^:/@]*:([^@]+)@")
_PASSWORD_IN_QUERY = re.compile(r"[?&](?:password|passwd|pwd|sslpassword)=([^&]+)", re.IGNORECASE)


def _secrets_in(value: str) -> set[str]:
    """The value itself, or of a URL only its passwords: where the rest points to may be said."""
    if "://" not in value:
        return {value}
    return {*_PASSWORD_BEFORE_HOST.findall(value), *_PASSWORD_IN_QUERY.findall(value)}


_VARIABLES = tuple(
    str(field.validation_alias or PREFIX + name.upper())
    for name, field in FastroAISettings.model_fields.items()
)
# Of the process, as the environment is: each run asks for its settings, and parsing them takes
# milliseconds.
_cached: tuple[object, FastroAISettings] | None = None


STORAGE_FORMS = (
    "expected s3://bucket/prefix, another URL such as gs://bucket/prefix, a local folder, or "
    "block-type/name of a Prefect block"
)


def names_storage(text: str) -> bool:
    """Whether a text has one of the forms of `result_storage`; whether the storage is there is
    found out by a run.
    """
    scheme, separator, rest = text.partition("://")
    if separator:
        is_scheme = re.fullmatch("[a-z][a-z0-9+.-]*", scheme) is not None
        return is_scheme and rest.strip("/") != "" and not (scheme == "s3" and rest[0] == "/")
    if re.match(r"s3-bucket/(?=.)", text):
        return True
    # A near miss must not become a folder of that name; one can still be given as ./name.
    return bool(text.strip()) and not re.match(r"s3[:-]|[a-z][a-z0-9+.-]*:/", text, re.IGNORECASE)


def _places(value: object) -> object:
    """A list of places, each a text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ValueError(f'is not JSON ({error}); an example is ["docs"]') from error
    if value is None:
        return None
    if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
        raise ValueError('must be a JSON list of folders and URIs; an example is ["docs"]')
    return tuple(value)


_EXAMPLE_HOSTS = 'an example is {"127.0.0.1:8765": "openai"}'


def _provider_hosts(value: Any) -> dict[str, str]:
    """`host` or `host:port` -> provider, both as they are looked up."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ValueError(f"is not JSON ({error}); {_EXAMPLE_HOSTS}") from error
    if not isinstance(value, Mapping):
        raise ValueError(f"must be a JSON object of hosts and providers; {_EXAMPLE_HOSTS}")
    return dict(map(_provider_host, value, value.values()))


def _provider_host(name: str, provider: object) -> tuple[str, str]:
    host, port = host_and_port(name)
    if host is None or re.search("://|[/@?#]", name):
        raise ValueError(f"{name!r} is not a host or host:port; {_EXAMPLE_HOSTS}")
    if not isinstance(provider, str) or canonical_provider(provider) not in PROVIDERS:
        raise ValueError(f"{provider!r} (host {name!r}) is not a known provider; {_EXAMPLE_HOSTS}")
    return host_key(host, port), canonical_provider(provider)


def _explain(error: ValidationError) -> str:
    """One line per bad variable: its name, its value unless secret, what is allowed."""
    return redact_patterns("\n".join(map(_problem, error.errors(include_url=False))))


def _problem(problem: ErrorDetails) -> str:
    name = str(problem["loc"][0]) if problem["loc"] else "?"
    variable = name if name.isupper() else PREFIX + name.upper()
    secret = "key" in name.lower() or "secret" in name.lower()
    value = "***" if secret else repr(problem["input"])
    return f"{variable}={value}: {problem['msg']}. Set it to an allowed value, or unset it."
