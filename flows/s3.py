"""S3 as the jobs read it and write to it, by the settings of result storage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastroai.settings import load_settings

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client


def s3_client() -> S3Client:
    """A client for the service and with the credentials of `FASTROAI_S3_*`, or of the AWS chain."""
    import boto3
    from botocore.config import Config

    settings = load_settings()
    key_id, secret = settings.s3_access_key_id, settings.s3_secret_access_key
    return boto3.client(
        "s3",
        endpoint_url=settings.s3_endpoint_url,
        region_name=settings.s3_region,
        aws_access_key_id=key_id.get_secret_value() if key_id else None,
        aws_secret_access_key=secret.get_secret_value() if secret else None,
        config=Config(
            connect_timeout=settings.s3_connect_timeout,
            read_timeout=settings.s3_read_timeout,
            retries={"total_max_attempts": 2, "mode": "standard"},
        ),
    )
