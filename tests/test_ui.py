"""What a person sees: the real Dagster UI over a real run, in headless Chromium."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (CI installs Debian's)")


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The web server on a home that an ingest run and one backtest have filled."""
    home = tmp_path_factory.mktemp("ui")
    env = {**os.environ, "QUANT_HOME": str(home), "DAGSTER_HOME": str(home / "dagster")}
    for first, last in (("2012-01-03", "2012-03-30"),):
        subprocess.run(
            [sys.executable, "-m", "quant_assets.launch", "ingest_job", "--first", first, "--last", last],
            env=env,
            check=True,
            capture_output=True,
        )
    subprocess.run(
        [
            str(Path(sys.executable).with_name("dagster")),
            *(
                "asset",
                "materialize",
                "-m",
                "quant_assets.definitions",
                "--select",
                "backtests/sma_crossover",
            ),
        ],
        cwd=ROOT,
        env=env,
        check=True,
        capture_output=True,
    )
    with served(home) as address:
        yield address


@pytest.fixture(scope="module")
def chain_ui(chain: Any) -> Iterator[str]:
    """The web server on the filled home."""
    with served(chain.home) as address:
        yield address


@contextmanager
def served(home: Path) -> Iterator[str]:
    """A web server process on a home, until the end of the block."""
    env = {**os.environ, "QUANT_HOME": str(home), "DAGSTER_HOME": str(home / "dagster")}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [
            str(Path(sys.executable).with_name("dagster-webserver")),
            "-w",
            "workspace.yaml",
            "-h",
            "127.0.0.1",
            "-p",
            str(port),
        ],
        cwd=ROOT,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                urllib.request.urlopen(f"{address}/server_info", timeout=2).read()
                break
            except OSError:
                assert server.poll() is None, "the web server ended"
                assert time.monotonic() < deadline, "the web server does not answer"
                time.sleep(0.3)
        yield address
    finally:
        server.terminate()
        server.wait(timeout=30)


def test_the_asset_page_shows_columns_checks_and_the_price_plot(ui: str) -> None:
    from playwright.sync_api import expect, sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            page = browser.new_page(viewport={"width": 1500, "height": 1000})
            page.goto(f"{ui}/assets/market/bars?view=overview")
            expect(page.get_by_text("Raw daily bars with dividends and split factors")).to_be_visible(
                timeout=60_000
            )
            expect(page.get_by_text("cash per share going ex on this session, dollars")).to_be_visible(
                timeout=30_000
            )
            expect(page.get_by_text("market-data")).to_be_visible()
            row = page.locator("tr", has=page.get_by_text("prices", exact=True)).first
            row.get_by_text("[Show Markdown]").click(timeout=30_000)
            image = page.locator("img[alt='Raw and adjusted close']")
            expect(image).to_be_visible(timeout=30_000)
            # Not only there but decoded: a broken picture has no natural width.
            assert image.evaluate("node => node.naturalWidth") > 500
        finally:
            browser.close()


def test_the_lineage_shows_every_layer(ui: str) -> None:
    from playwright.sync_api import expect, sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            page = browser.new_page(viewport={"width": 1500, "height": 1000})
            page.goto(f"{ui}/asset-groups")
            for group in (
                *(
                    "vendors",
                    "market",
                    "features",
                    "posterior",
                    "simulation",
                    "models",
                    "backtests",
                    "serving",
                ),
            ):
                expect(page.get_by_text(group, exact=True).first).to_be_visible(timeout=60_000)
        finally:
            browser.close()


def test_a_backtest_shows_its_curve_its_trades_and_its_statistics(ui: str) -> None:
    from playwright.sync_api import expect, sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            page = browser.new_page(viewport={"width": 1500, "height": 1000})
            page.goto(f"{ui}/assets/backtests/sma_crossover?view=overview")
            expect(page.get_by_text("Long when the fast average crosses above")).to_be_visible(timeout=60_000)
            for key, caption in (("equity", "Out of sample, "), ("trades on the chart", "Trades in ")):
                row = page.locator("tr", has=page.get_by_text(key, exact=True)).last
                row.get_by_text("[Show Markdown]").click(timeout=30_000)
                image = page.locator(f"img[alt^='{caption}']")
                expect(image).to_be_visible(timeout=30_000)
                assert image.evaluate("node => node.naturalWidth") > 500
                page.keyboard.press("Escape")
                expect(image).to_be_hidden(timeout=30_000)
            expect(page.get_by_text("returns: sharpe_low")).to_be_visible(timeout=30_000)
        finally:
            browser.close()


def test_a_posterior_shows_its_draws_per_symbol(chain: Any, chain_ui: str) -> None:
    from playwright.sync_api import expect, sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            page = browser.new_page(viewport={"width": 1500, "height": 1000})
            for asset, key, caption in (
                ("posterior/heston", "running mean of theta", "Running mean of theta"),
                ("simulation/intraday_paths", "profiles", "Volume and spread"),
            ):
                page.goto(f"{chain_ui}/assets/{asset}?view=partitions&partition={chain.posterior_symbol}")
                row = page.locator("tr", has=page.get_by_text(key, exact=True)).last
                row.get_by_text("[Show Markdown]").click(timeout=60_000)
                image = page.locator(f"img[alt^='{caption}']")
                expect(image).to_be_visible(timeout=30_000)
                assert image.evaluate("node => node.naturalWidth") > 500
        finally:
            browser.close()


@pytest.mark.usefixtures("chain")
def test_an_agent_shows_how_it_learned_and_how_it_compares(chain_ui: str) -> None:
    from playwright.sync_api import expect, sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            page = browser.new_page(viewport={"width": 1500, "height": 1000})
            for asset, key in (
                ("models/sac_portfolio", "Learning curves"),
                ("models/sac_portfolio", "Losses, temperature, entropy, speed"),
                ("backtests/execution", "Inventory: agent, TWAP, VWAP, Almgren-Chriss"),
                ("backtests/market_making", "Inventory beside the closed forms"),
            ):
                page.goto(f"{chain_ui}/assets/{asset}?view=overview")
                row = page.locator("tr", has=page.get_by_text(key, exact=True)).last
                row.get_by_text("[Show Markdown]").click(timeout=60_000)
                image = page.locator(
                    "div[role='dialog'] img, .bp5-dialog img, img[src^='data:image/png']"
                ).last
                expect(image).to_be_visible(timeout=30_000)
                assert image.evaluate("node => node.naturalWidth") > 500
        finally:
            browser.close()
