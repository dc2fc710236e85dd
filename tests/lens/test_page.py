"""The page in a browser: it renders, shows the document's numbers, obeys the keyboard and asks the network for nothing."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitral.engine.interventions import Intervention
from vitral.lens.inspect import inspect
from vitral.lens.page import page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = "</script><img src=x onerror=\"document.title='taken'\">"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine; install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="playwright, which drives Chromium, is not installed")
    with api.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=120_000)
        yield started
        started.close()


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """Opens a document; afterwards no error may have been logged and nothing asked of the network."""
    tab = browser.new_page(locale="en-US")
    tab.set_default_timeout(60_000)
    faults: list[str] = []
    asked: list[str] = []
    tab.on("console", lambda m: faults.append(m.text) if m.type == "error" else None)
    tab.on("pageerror", lambda e: faults.append(str(e)))
    tab.on("request", lambda r: asked.append(r.url))

    def open_(document: dict[str, Any]) -> Any:
        path = tmp_path / "page.html"
        path.write_text(page(document), "utf-8")
        tab.goto(path.as_uri())
        tab.wait_for_selector("html[data-ready]")
        return tab

    yield open_
    assert faults == []
    assert len(asked) == 1
    tab.close()


@pytest.fixture(scope="module")
def document(stories: Any) -> dict[str, Any]:
    found = inspect(stories, stories.tokenizer.encode("Once upon a time there was a dog"), name="stories")
    found["tokens"][2]["text"] = HOSTILE
    found["texts"][str(found["run"]["predictions"][-1]["top"]["ids"][0])] = HOSTILE
    return found


def test_numbers_on_the_page_are_those_of_the_document(show: Any, document: dict[str, Any]) -> None:
    tab = show(document)
    top = document["run"]["predictions"][-1]["top"]
    shown = tab.locator("#next tbody tr")
    assert [float(n) for n in shown.locator(".number").all_inner_texts()] == top["probs"]
    bars = tab.locator("#attribution tbody .number").all_inner_texts()
    total = tab.locator("#attribution tfoot .number").inner_text()
    assert sum(float(n.replace("−", "-")) for n in bars) == pytest.approx(float(total), abs=1e-4)
    assert tab.locator("#attribution .help").inner_text().endswith(f"{document['run']['attribution']['logits'][-1]}.")
    tab.click("#lens summary")
    tab.locator("#lens tbody tr").first.wait_for()  # the table is written once it is opened
    cells = tab.locator("#lens tbody tr td:nth-child(3)").all_inner_texts()
    assert [float(n) for n in reversed(cells)] == [layer[-1][0] for layer in document["run"]["lens"]["probs"]]


def test_a_hostile_token_stays_text(show: Any, document: dict[str, Any]) -> None:
    tab = show(document)
    assert tab.locator("img").count() == 0
    assert tab.title() == "Vitral · stories"
    assert "onerror" in tab.locator("#token-2").inner_text()


def test_the_keyboard_moves_one_selection_for_all_views(show: Any, document: dict[str, Any]) -> None:
    tab = show(document)
    tab.focus("#tokens [tabindex='0']")
    tab.keyboard.press("Home")
    tab.keyboard.press("ArrowRight")
    assert tab.locator("[aria-selected='true']").get_attribute("id") == "token-1"
    assert tab.evaluate("document.activeElement.id") == "token-1"
    shares = [float(n) for n in tab.locator("#next .number").all_inner_texts()]
    assert shares == document["run"]["predictions"][1]["top"]["probs"]


def test_before_and_after_are_the_numbers_of_the_document(show: Any, stories: Any) -> None:
    edits = [Intervention("zero", tap="blocks.2.hook_mlp_out")]
    found = inspect(stories, stories.tokenizer.encode("Once upon a time"), interventions=edits)
    tab = show(found)
    change = found["changes"][-1]
    rows = tab.locator("#interventions table >> nth=0 >> tbody tr")
    numbers = [[float(n) for n in row.locator(".number").all_inner_texts()[:2]] for row in rows.all()]
    assert numbers == [list(pair) for pair in zip(change["before"], change["after"], strict=True)]
    assert f"{change['kl']} bits" in tab.locator("#interventions .fact").inner_text()
    assert tab.locator("#interventions .chips li").all_inner_texts() == ["zero · blocks.2.hook_mlp_out"]
    tab.check("input[value='before']", force=True)
    top = found["before"]["predictions"][-1]["top"]["probs"]
    assert [float(n) for n in tab.locator("#next .number").all_inner_texts()] == top


def test_routes_are_drawn_and_a_layer_without_experts_says_so(show: Any, document: dict[str, Any]) -> None:
    layers, n = document["model"]["n_layers"], len(document["tokens"])
    experts = {
        "indices": [[], *([[t % 3, 3] for t in range(n)] for _ in range(layers - 1))],
        "weights": [[], *([[0.75, 0.25] for _ in range(n)] for _ in range(layers - 1))],
    }
    model = document["model"] | {"n_experts": 4, "n_experts_per_token": 2}
    tab = show(document | {"run": document["run"] | {"experts": experts}, "model": model})
    shares = [float(x) for x in tab.locator("#experts .number").all_inner_texts()]
    chosen = np.bincount(np.ravel(experts["indices"][-1]), minlength=4)
    assert np.allclose(shares, chosen / chosen.sum(), atol=1e-6)
    tab.focus("#ribbon")
    for _ in range(layers):
        tab.keyboard.press("ArrowDown")
    assert tab.locator("#experts .number").count() == 0
    assert "no experts" in tab.locator("#experts .tip").inner_text()


def test_a_window_of_two_thousand_tokens_is_drawn_where_it_is_looked_at(show: Any, document: dict[str, Any]) -> None:
    n, layers, heads = 2000, document["model"]["n_layers"], document["model"]["n_heads"]
    run = dict(document["run"])
    run["predictions"] = [run["predictions"][0]] * n
    id = run["predictions"][0]["top"]["ids"][0]
    run["lens"] = {"ids": [[[id]] * n] * layers, "probs": [[[0.5]] * n] * layers, "target_probs": [[0.5] * n] * layers}
    run["attribution"] = {
        "targets": [id] * n, "logits": [1.0] * n, "components": [[0.1] * n] * (2 * layers + 1),
        "heads": [[[0.1] * n] * heads] * layers, "rounding": [0.0] * n, "rest": [0.0] * n,
    }  # fmt: skip
    run["attention"] = {"size": n, "encoding": "whole"} | {
        "mean": base64.b64encode(bytes(n * (n + 1) // 2)).decode(), "layers": [], "heads": [],
    }  # fmt: skip
    tab = show(document | {"run": run, "tokens": [document["tokens"][1]] * n, "window": {"start": 0, "stop": n}})
    drawn = """() => { const c = document.querySelector('#lens-map'); const p = c.getContext('2d');
        return c.width < 4000 && p.getImageData(c.width / 2, c.height - 14, 4, 1).data.includes(255); }"""
    tab.wait_for_function(drawn)
    tab.focus("#lens-map")
    tab.keyboard.press("Home")
    tab.wait_for_function(drawn)
    assert tab.evaluate("document.querySelector('#lens .wide').scrollLeft") == 0


def test_it_speaks_portuguese(show: Any, document: dict[str, Any]) -> None:
    tab = show(document)
    tab.check("input[value='pt-BR']", force=True)
    assert tab.locator("#text h2").inner_text() == "Texto"
    assert tab.get_attribute("html", "lang") == "pt-BR"


def test_attention_of_two_thousand_tokens_is_drawn(show: Any, document: dict[str, Any]) -> None:
    n = 2000
    every = np.arange(n, dtype="<u2")
    columns = np.maximum(every[:, None].astype(int) - np.arange(8), 0).astype("<u2")
    rows = base64.b64encode(columns.tobytes() + bytes([31] * 8 * n)).decode()
    layers, heads = document["model"]["n_layers"], document["model"]["n_heads"]
    run = dict(document["run"])
    run["predictions"] = [run["predictions"][0]] * n
    run["attention"] = {
        "size": n,
        "encoding": "strongest",
        "mean": base64.b64encode(bytes([255] * (n * (n + 1) // 2))).decode(),
        "layers": [rows] * layers,
        "heads": [[rows] * heads] * layers,
    }
    width = len(document["tokens"])
    tab = show(
        document | {"run": run, "tokens": [document["tokens"][1]] * n, "window": {"start": n - width, "stop": n}}
    )
    tab.wait_for_function(
        """() => { const c = document.querySelector('#attention-map'); const p = c.getContext('2d');
        const at = (x, y) => p.getImageData(c.width * x, c.height * y, 1, 1).data.join();
        return c.width > 100 && at(0.2, 0.6) !== at(0.8, 0.3); }"""
    )


def test_the_built_page_is_what_its_source_gives(tmp_path: Path) -> None:
    if not (ROOT / "web" / "node_modules").is_dir() or shutil.which("node") is None:
        pytest.skip("web/ was not installed: node 20.19 or newer, then make web")
    vite = ROOT / "web" / "node_modules" / ".bin" / "vite"
    command = [str(vite), "build", "--outDir", str(tmp_path), "--logLevel", "error"]
    subprocess.run(command, cwd=ROOT / "web", check=True, env=os.environ | {"CI": "1"}, timeout=280)
    built = ROOT / "src" / "vitral" / "lens" / "static" / "inspect.html"
    assert (tmp_path / "inspect.html").read_bytes() == built.read_bytes()
