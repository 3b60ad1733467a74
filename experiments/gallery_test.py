"""The gallery in a browser, from figures with small numbers."""

import json

import numpy as np
import pytest
from PIL import Image

from experiments import gallery
from experiments._arguments import UserError
from experiments._browser import PATH, Browser

chromium = pytest.mark.skipif(PATH is None, reason="there is no Chromium")


def make(folder, name, **more):
    Image.fromarray(np.full((90, 200), 255, np.uint8)).save(folder / f"{name}.png")
    described = {"name": name, "title": f"The {name} <b>", "caption": "A & B", "alt": 'says "so"', "command": name}
    described |= {"commit": "abc", "machine": "one", "numbers": {"seeds": [0, 1], "x": {"y": 1.25, "many": [0] * 99}}}
    (folder / f"{name}.json").write_text(json.dumps(described | more))


def test_a_folder_without_figures_is_refused(tmp_path):
    with pytest.raises(UserError):
        gallery.write(tmp_path)


def test_figures_stand_in_the_reports_order(tmp_path):
    for name in ("numerics", "worked_example", "pipeline"):
        make(tmp_path, name)
    (tmp_path / "pipeline.png").unlink()  # half a figure is none
    text = gallery.write(tmp_path).read_text()
    assert 0 < text.index('id="worked_example"') < text.index('id="numerics"')
    assert "pipeline" not in text
    assert "The numerics &lt;b&gt;" in text
    assert "report.pdf" not in text


@pytest.mark.slow
@chromium
def test_the_page_opens_from_disk_and_asks_for_nothing_else(tmp_path):
    folder = tmp_path / "figures"
    folder.mkdir()
    for name in ("worked_example", "numerics"):
        make(folder, name)
    page = gallery.write(folder)
    backgrounds = set()
    for number, (width, dark) in enumerate([(390, False), (390, True), (1200, False)]):
        with Browser(tmp_path / str(number), width, 800, dark) as browser:
            browser.open(page)
            assert browser.problems == []
            assert all(address.startswith((folder.as_uri(), "data:")) for address in browser.requests)
            images = browser.evaluate("[...document.images].map(one => [one.naturalWidth, one.alt])")
            assert images == [[200, 'says "so"']] * 2
            assert browser.evaluate("document.documentElement.scrollWidth") <= width  # nothing sticks out of the page
            backgrounds.add(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(backgrounds) == 2
