"""The Prefect UI alone: fill in the form, start a run, follow it to its end, read what it leaves."""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from uuid import UUID

import pytest
from playwright.sync_api import Locator, Page, expect
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId

from tests.prefect_server import PrefectServer
from tests.tiny import make_model

pytestmark = [pytest.mark.browser, pytest.mark.prefect, pytest.mark.slow]

_RUN_SECONDS = 600
_TRIES = 10
expect.set_options(timeout=90_000)


def _open_form(server: PrefectServer, page: Page, name: str = "run") -> None:
    with server.client() as client:
        deployment = client.read_deployment_by_name(f"quantize-model/{name}")
    page.goto(f"{server.url}/v2/deployments/deployment/{deployment.id}/run")
    page.get_by_label("Target bits").wait_for()


def _fill(page: Page, fields: Mapping[str, str]) -> None:
    for label, text in fields.items():
        _field(page, label).fill(text)
    for label, text in fields.items():  # the form sets its defaults while it is being filled in
        expect(_field(page, label)).to_have_value(text)


def _field(page: Page, label: str) -> Locator:
    """A field by how its label begins: others may end alike."""
    return page.get_by_label(re.compile(f"^{label}"))


def _submit(server: PrefectServer, page: Page) -> UUID:
    """Start the run and open its page.

    The server's answer names the run. The toast that links to it closes after four seconds, which
    a busy machine spends on drawing the page behind it. With SQLite the server answers 503 when
    a worker writes at the same moment: clients try again by themselves, a person submits again.
    """
    for _ in range(_TRIES):
        with page.expect_response(re.compile("/create_flow_run$")) as answer:
            page.get_by_role("button", name="Submit").click()
        if answer.value.status != HTTPStatus.SERVICE_UNAVAILABLE:
            break
    assert answer.value.ok, answer.value.text()
    run = UUID(answer.value.json()["id"])
    page.goto(f"{server.url}/v2/runs/flow-run/{run}")
    page.get_by_role("tab", name="Task Runs").wait_for()
    return run


def _ending(page: Page) -> str:
    """Wait for the state in which the run on the page ends."""
    ended = page.get_by_text(re.compile("^(Completed|Failed|Crashed)$")).first
    ended.wait_for(timeout=1000 * _RUN_SECONDS)
    return ended.inner_text()


def _artifact(page: Page, key: str) -> None:
    """Open an artifact of the run on the page."""
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_role("heading", name=key, exact=True).click()
    page.get_by_role("link", name=re.compile("^[0-9a-f]{8}$")).first.click()


@pytest.mark.usefixtures("picture")
def test_a_run_is_started_from_the_form_and_shows_what_came_out(
    deployed: PrefectServer, page: Page, tmp_path: Path
) -> None:
    _open_form(deployed, page)
    page.screenshot(path=tmp_path / "form.png", full_page=True)
    model = make_model(tmp_path / "tiny")
    page.get_by_label("Select Where").click()
    page.get_by_role("option", name="here").click()
    _fill(page, {"Path": str(model), "Target bits": "5", "Limit": "2", "Samples": "4"})
    run_id = _submit(deployed, page)
    assert _ending(page) == "Completed"
    page.screenshot(path=tmp_path / "run.png")

    with deployed.client() as client:
        config = client.read_flow_run(run_id).parameters["config"]
    assert (config["allocation"]["target_bits"], config["evaluation"]["limit"]) == (5, 2)
    assert config["execution"]["where"] == "here"

    address = page.url
    _artifact(page, "scores")
    expect(page.get_by_role("row", name=re.compile("heldout perplexity"))).to_be_visible()
    for key, text in (("stages", "first run"), ("plan", "By role"), ("report", "report.html")):
        page.goto(address)
        _artifact(page, key)
        expect(page.get_by_test_id("markdown-display")).to_contain_text(text)
    page.goto(address)
    _artifact(page, "figures")
    pictures = page.get_by_test_id("markdown-display").get_by_role("img")
    expect(pictures.first).to_be_visible()
    widths = pictures.evaluate_all("found => found.map(picture => picture.naturalWidth)")
    assert len(widths) > 3
    assert min(widths) > 100


def test_a_recipes_form_is_filled_in_with_it(
    deployed: PrefectServer, page: Page, tmp_path: Path
) -> None:
    _open_form(deployed, page, "best")
    expect(_field(page, "Generated")).to_have_value("0.5")
    for label, choice in (("Correction", "stream"), ("Tune", "block"), ("Kind", "hadamard")):
        expect(page.get_by_label(f"Select {label}", exact=True)).to_contain_text(choice)
    page.screenshot(path=tmp_path / "best.png", full_page=True)


@pytest.mark.usefixtures("picture")
def test_a_failed_run_says_what_to_mend(deployed: PrefectServer, page: Page) -> None:
    _open_form(deployed, page)
    _fill(page, {"Path": "/no/such/model"})
    run_id = _submit(deployed, page)
    assert _ending(page) == "Failed"
    said = "model folder '/no/such/model' does not exist"
    page.get_by_role("tab", name="Details").click()
    expect(page.get_by_text(f"The run was refused: {said}")).to_be_visible()
    _artifact(page, "failure")
    expect(page.get_by_role("heading", name="The run was refused")).to_be_visible()
    expect(page.get_by_test_id("markdown-display").get_by_role("blockquote")).to_contain_text(said)
    expect(page.get_by_role("strong").filter(has_text="What to do.")).to_be_visible()
    with deployed.client() as client:
        logs = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id])))
    assert any(said in log.message for log in logs)
    assert not any("Traceback" in log.message for log in logs)
