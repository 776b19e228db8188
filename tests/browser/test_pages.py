"""The dashboard and the report in a real Chromium: what only a browser can show."""

from __future__ import annotations

import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from studies.tiny import TALES, run_once

from apps.dashboard.serve import command
from tests.apps.fake_store import fake_study
from workbench.report import write_report
from workbench.studies.handle import Study

pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings("ignore")]
CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
LATE = 60_000


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    return fake_study(tmp_path_factory.mktemp("browser"))


def serve(root: Path, elsewhere: Path) -> Iterator[str]:
    """The address of a dashboard that shows a store."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    argv, environment = command(root, port)
    server = subprocess.Popen(argv, env=environment, cwd=elsewhere, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"http://localhost:{port}/_stcore/health")
                break
            except OSError:
                time.sleep(0.25)
        yield f"http://localhost:{port}"
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="module")
def address(study, tmp_path_factory):
    yield from serve(study.store.root, tmp_path_factory.mktemp("elsewhere"))


@pytest.fixture(scope="module")
def tales(tmp_path_factory):
    yield from serve(run_once(tmp_path_factory, TALES).store.root, tmp_path_factory.mktemp("elsewhere"))


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    if not Path(CHROMIUM).exists():
        pytest.skip(f"{CHROMIUM} is not here")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


@pytest.fixture
def visit(browser):
    """`(url, scheme) -> page`; afterwards nothing may have failed or been asked of another machine."""
    troubles: list[str] = []
    contexts = []

    def open_it(url, scheme="light"):
        context = browser.new_context(viewport={"width": 1400, "height": 1400}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("requestfailed", lambda r: None if "localhost" in r.url else troubles.append(f"asked for {r.url}"))
        page.goto(url)
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert troubles == []


def ready(page, heading):
    page.get_by_role("heading", name=heading, exact=True).wait_for(timeout=LATE)


def drawn(page):
    page.locator(".js-plotly-plot .main-svg").first.wait_for(timeout=LATE)


def test_the_address_makes_the_view_and_the_view_the_address(visit, address):
    page = visit(f"{address}/study?pair=erased&seed=1")
    ready(page, "Study")
    drawn(page)
    assert page.get_by_text("seed 1;").or_(page.get_by_text("seed 1")).count() >= 1
    page.get_by_label("Pair").click()
    page.get_by_role("option", name="learned").click()
    page.wait_for_url("**/study?*pair=learned*", timeout=LATE)
    assert "seed=1" in page.url
    again = visit(page.url)
    ready(again, "Study")
    again.get_by_text("learned: counting b").or_(again.get_by_text("fine-tuning taught it")).first.wait_for(timeout=LATE)


def test_a_run_is_found_by_its_key_alone(visit, address, study):
    run = next(r for _, r in study.runs() if r.kind == "finetune")
    page = visit(f"{address}/run?run={run.key}")
    ready(page, "Run")
    drawn(page)
    page.get_by_text(f"{run.stage}-{run.key}").first.wait_for(timeout=LATE)


def test_a_stale_run_is_answered_kindly(visit, address):
    page = visit(f"{address}/run?run=pretrain-base-s9")
    page.get_by_text("This run is not here").wait_for(timeout=LATE)


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_both_schemes_can_be_read(visit, address, scheme, dark):
    page = visit(address, scheme)
    ready(page, "Overview")
    look = "e => { const s = getComputedStyle(e); return [s.backgroundColor, s.color] }"
    back, text = page.locator(".stApp").evaluate(look)
    brightness = [sum(int(v) for v in c[c.index("(") + 1 : -1].split(",")[:3]) / 3 for c in (back, text)]
    assert (brightness[0] < 60) == dark
    assert abs(brightness[0] - brightness[1]) > 150


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_models_continue_a_prompt_side_by_side(visit, tales, scheme):
    page = visit(f"{tales}/stories", scheme)
    ready(page, "How they were trained")
    drawn(page)
    tokens = page.locator("span[title*='surprisal']")
    tokens.first.wait_for(timeout=LATE)
    tops = {round(box.bounding_box()["y"]) for box in page.locator("div[style*='pre-wrap']").all()}
    assert len(tops) == 1  # side by side
    assert "nats" in (tokens.last.get_attribute("title") or "")
    page.get_by_role("textbox", name="Prompt").fill("<b id='planted'>Tom</b> ran")
    page.get_by_role("button", name="Continue").click()
    planted = "[...document.querySelectorAll('div')].filter(e => e.style.whiteSpace == 'pre-wrap' && e.textContent.startsWith('<b id'))"
    page.wait_for_function(f"{planted}.length == 4", timeout=LATE)
    assert page.locator("#planted").count() == 0
    page.get_by_text("none", exact=True).click()
    page.wait_for_function("!document.querySelector(\"span[title][style*='background-color']\")", timeout=LATE)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_draws_every_figure_from_one_file(visit, study, tmp_path, scheme):
    path = write_report(study, tmp_path / "report.html")
    page = visit(path.as_uri(), scheme)
    for box in page.locator(".figure").all():
        box.scroll_into_view_if_needed()
        box.locator(".main-svg").first.wait_for(timeout=LATE)
    assert page.locator(".figure.js-plotly-plot").count() == 12
    color = page.evaluate("document.querySelector('.figure')._fullLayout.font.color")
    assert color == {"light": "#1f2328", "dark": "#e6edf3"}[scheme]
    with page.expect_download() as download:
        page.locator("a[download='wrapped-revival.json']").click()
    assert '"layout"' in Path(download.value.path()).read_text()
