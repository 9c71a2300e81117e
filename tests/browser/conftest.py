"""Debian's chromium, and a Prefect server with a worker and the repository's own deployments."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, Route, sync_playwright

from flows.server.register import register
from tests.prefect_server import ROOT, PrefectServer, prefect_server

_CHROMIUM = shutil.which("chromium")
_OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
]
_PREFECT = [sys.executable, "-m", "prefect", "--no-prompt"]


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """A server with its UI, on which everything of prefect.yaml is deployed, and a worker."""
    folder = tmp_path_factory.mktemp("deployed")
    with prefect_server(folder / "prefect", ui=True) as server:
        with server.client() as client:
            register(client)
        deploy = [*_PREFECT, "deploy", "--all"]
        subprocess.run(deploy, cwd=ROOT, env=server.environment, check=True, capture_output=True)
        with (folder / "worker.log").open("w") as log:
            worker = subprocess.Popen(
                [*_PREFECT, "worker", "start", "--pool", "cpu"],
                cwd=folder,
                env=server.environment
                | {"ALPHAQUANT_HOME": str(folder), "ALPHAQUANT_STORE": str(folder / "store")},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield server
        finally:
            worker.send_signal(signal.SIGINT)
            try:
                worker.wait(20)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()


@pytest.fixture
def page() -> Iterator[Page]:
    """A browser's page that reaches this machine only."""
    if _CHROMIUM is None:
        pytest.skip("needs chromium: apt install chromium")

    def stay_here(route: Route) -> None:
        if urlsplit(route.request.url).hostname == "127.0.0.1":
            route.continue_()
        else:
            route.abort()

    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=_CHROMIUM, args=_OPTIONS) as browser,
    ):
        opened = browser.new_page(viewport={"width": 1300, "height": 1000})
        opened.set_default_timeout(90_000)
        opened.route("**/*", stay_here)
        yield opened


@pytest.fixture
def picture(page: Page, tmp_path: Path) -> Iterator[None]:
    """Leaves a screenshot of the page's last state in the test's folder."""
    yield
    page.screenshot(path=tmp_path / "last.png", full_page=True)
