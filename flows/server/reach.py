"""Whether a Prefect server is there, and whether it lets us in. Imports no prefect."""

from __future__ import annotations

import base64
import urllib.error
import urllib.request
from http import HTTPStatus

from alphaquant.errors import ConfigError
from flows.server.options import CLIENT_AUTH


def check_password(api_url: str, password: str | None) -> None:
    """Raise ConfigError when a server that answers does not let us in."""
    asked = urllib.request.Request(f"{api_url}/admin/version")
    if password:
        code = base64.b64encode(password.encode()).decode()
        asked.add_header("Authorization", f"Basic {code}")
    try:
        urllib.request.urlopen(asked, timeout=10).close()
    except urllib.error.HTTPError as error:
        with error:
            if error.code != HTTPStatus.UNAUTHORIZED:
                return
        found = "is not the one it wants" if password else "is not set"
        raise ConfigError(
            f"the Prefect server at {api_url} wants a password, and {CLIENT_AUTH} {found}. Set it as it was "
            "set for the server, user:password."
        ) from error
    except OSError:
        return  # the workers will say what is wrong


def answers(api_url: str) -> bool:
    """Whether a Prefect server is there; this it says without a password too."""
    try:
        with urllib.request.urlopen(f"{api_url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False
