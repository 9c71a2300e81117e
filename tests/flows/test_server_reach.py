"""What is said of a server that answers but does not let us in."""

from __future__ import annotations

import base64
import http.server
import threading
from collections.abc import Iterator

import pytest

from alphaquant.errors import ConfigError
from flows.server.reach import answers, check_password


class _Guarded(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        wanted = f"Basic {base64.b64encode(b'admin:secret').decode()}"
        free = self.path.endswith("/health")
        self.send_response(200 if free or self.headers["Authorization"] == wanted else 401)
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        return None


@pytest.fixture
def api() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Guarded) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/api"
        server.shutdown()
        thread.join()


def test_the_right_password_passes(api: str) -> None:
    assert answers(api)
    check_password(api, "admin:secret")


@pytest.mark.parametrize(
    ("password", "said"), [(None, "is not set"), ("admin:wrong", "is not the one it wants")]
)
def test_a_wrong_password_is_named_before_any_worker_starts(
    api: str, password: str | None, said: str
) -> None:
    with pytest.raises(ConfigError, match=f"PREFECT_API_AUTH_STRING {said}"):
        check_password(api, password)


def test_a_server_that_is_not_there_is_not_judged() -> None:
    assert not answers("http://127.0.0.1:9/api")
    check_password("http://127.0.0.1:9/api", None)
