"""A real S3 server for tests: a process of its own on a free port, ended with the test.

with s3_server() as server:
    monkeypatch the environment with server.environment
    server.client.create_bucket(Bucket="bucket")
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

_HOST = "127.0.0.1"
_START_SECONDS = 60


@dataclass
class S3Server:
    """A running server; everything it holds is lost with it."""

    endpoint: str
    process: subprocess.Popen[bytes]

    @property
    def environment(self) -> dict[str, str]:
        """What a user of this server sets."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "tester",
            "AWS_SECRET_ACCESS_KEY": "secret",
        }

    @cached_property
    def client(self) -> Any:
        """A client that shares no code with the store's."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id="tester",
            aws_secret_access_key="secret",
            region_name="us-east-1",
        )

    def bucket(self, name: str) -> str:
        """Make a bucket; returns its URL."""
        self.client.create_bucket(Bucket=name)
        return f"s3://{name}"

    def listing(self, url: str) -> list[str]:
        """Keys below a URL."""
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def read(self, url: str) -> bytes:
        """Content of an object."""
        bucket, _, key = url.removeprefix("s3://").partition("/")
        content: bytes = self.client.get_object(Bucket=bucket, Key=key)["Body"].read()
        return content

    def write(self, url: str, content: bytes) -> None:
        """Replace an object."""
        bucket, _, key = url.removeprefix("s3://").partition("/")
        self.client.put_object(Bucket=bucket, Key=key, Body=content)

    def delete(self, url: str) -> None:
        """Remove an object."""
        bucket, _, key = url.removeprefix("s3://").partition("/")
        self.client.delete_object(Bucket=bucket, Key=key)


@contextlib.contextmanager
def s3_server() -> Iterator[S3Server]:
    """Start a server and wait until it answers."""
    with socket.socket() as free:
        free.bind((_HOST, 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", _HOST, "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
    )
    server = S3Server(f"http://{_HOST}:{port}", process)
    try:
        _await(server)
        yield server
    finally:
        if "client" in vars(server):
            server.client.close()
        process.kill()
        process.wait()


def _await(server: S3Server) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(f"{server.endpoint}/moto-api/", timeout=5):
                return
        except (urllib.error.URLError, OSError) as error:
            if server.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the S3 server did not start") from error
            time.sleep(0.05)
