"""The page in a real browser: it lists models, draws with previews, and says what is wrong."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from http_service import Running, pixels_of, until

from arforge.runner import Request
from arforge.serving.limits import Limits

pytestmark = pytest.mark.servers
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if BROWSER is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any, service: Running) -> Iterator[Any]:
    faults: list[str] = []
    opened = browser.new_page()
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.goto(service.url)
    opened.wait_for_function("document.getElementById('model').options.length === 2")
    yield opened
    opened.close()
    assert not faults


def shown(page: Any) -> list[np.ndarray]:
    sources = page.eval_on_selector_all("#images img", "images => images.map(image => image.src)")
    return [pixels_of(base64.b64decode(source.partition(",")[2])) for source in sources]


def finished(page: Any) -> str:
    page.wait_for_function("!document.getElementById('draw').disabled")
    return str(page.inner_text("#status"))


def test_drawing_with_previews(page: Any, service: Running) -> None:
    page.fill("#prompt", "name 7")
    page.fill("#seed", str(2**64 - 2))
    page.fill("#n", "2")
    page.fill("#guidance", "2.5")
    page.fill("#schedule", "zipar:2")
    page.evaluate(  # each caption, however many come at once
        "const told = found => found.flatMap(one => [...one.addedNodes].map(node => node.textContent));"
        "new MutationObserver(found => window.texts.push(...told(found)))"
        ".observe(document.getElementById('images'), {subtree: true, childList: true, characterData: true});"
        "window.texts = []"
    )
    page.click("#draw")
    assert finished(page).endswith(" s")
    request = Request([7, 7], seeds=[2**64 - 2, 2**64 - 1], guidance=2.5, schedule="zipar:2")
    expected = service.served("raster").runner.generate(request).images
    assert expected is not None
    for found, image in zip(shown(page), expected, strict=True):
        np.testing.assert_array_equal(found, image)
    assert [caption.startswith("seed ") for caption in page.locator("figcaption").all_inner_texts()] == [True, True]
    assert {"partial 1", "partial 4"} <= set(page.evaluate("window.texts"))


def test_models_labels_and_faults(page: Any) -> None:
    assert page.eval_on_selector_all("#labels option", "all => all.map(one => one.value)")[7] == "name 7"
    assert page.get_attribute("#schedule", "placeholder") == "ntp"
    page.select_option("#model", "arpg")
    assert page.get_attribute("#prompt", "placeholder") == "a class: 0 to 9, or its name"
    page.fill("#prompt", "<b>no class</b>")
    page.click("#draw")
    assert "class '<b>no class</b>'" in finished(page)
    assert page.get_attribute("#status", "class") == "wrong"


def test_stopping_cancels(page: Any, service: Running) -> None:
    page.fill("#prompt", "1")
    with service.held("raster"):
        page.click("#draw")
        until(lambda: service.served("raster").batcher.waiting == 1)
        page.click("#stop")
        assert finished(page) == "stopped"
        until(lambda: service.served("raster").batcher.waiting == 0)


def test_a_service_with_a_key(browser: Any, class_bundle: Path, serve: Callable[..., Running]) -> None:
    own = serve([class_bundle], Limits(), key="s3cret")
    opened = browser.new_page()
    opened.goto(own.url)
    opened.wait_for_function("document.getElementById('status').textContent.includes('API key')")
    opened.fill("#key", "s3cret")
    opened.press("#key", "Tab")
    opened.wait_for_function("document.getElementById('model').options.length === 1")
    opened.fill("#prompt", "4")
    opened.click("#draw")
    assert finished(opened).endswith(" s")
    assert len(shown(opened)) == 1
    opened.close()
