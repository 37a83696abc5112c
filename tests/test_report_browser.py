"""The page in a real browser without a window: nothing overlaps, nothing sticks out, every picture shows."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

import dyncompile as dc
from dyncompile.report.html import build_report
from dyncompile.zoo import load
from tests import handmade
from tests.conftest import BROWSERS

BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = [pytest.mark.zoo, pytest.mark.browser]

PROBE = """
<script>
const bad = [];
if (document.documentElement.scrollWidth > window.innerWidth) bad.push("the page is wider than the window");
for (const svg of document.querySelectorAll("svg")) {
  const frame = svg.getBoundingClientRect(), seen = [];
  for (const text of svg.querySelectorAll("text")) {
    const r = text.getBoundingClientRect();
    if (r.left < frame.left - 1 || r.right > frame.right + 1 || r.bottom > frame.bottom + 1)
      bad.push("sticks out: " + text.textContent);
    for (const [s, other] of seen)
      if (r.left < s.right - 1 && s.left < r.right - 1 && r.top < s.bottom - 4 && s.top < r.bottom - 4)
        bad.push("overlap: " + other + " | " + text.textContent);
    seen.push([r, text.textContent]);
  }
  for (const box of svg.querySelectorAll(".box")) {
    const b = box.getBoundingClientRect();
    for (const text of box.parentNode.querySelectorAll("text"))
      if (text.getBoundingClientRect().right > b.right) bad.push("leaves its box: " + text.textContent);
  }
}
for (const image of document.images) if (!image.naturalWidth) bad.push("a picture does not show");
for (const link of document.querySelectorAll("nav a"))
  if (!document.querySelector(link.getAttribute("href"))) bad.push("leads nowhere: " + link.textContent);
document.body.dataset.bad = JSON.stringify(bad);
</script>
"""


def problems(page: str, folder: Path, width: int, *, dark: bool = False) -> list[str]:
    """What the probe finds wrong with the page at a window's width."""
    assert BROWSER is not None
    (folder / "page.html").write_text(page.replace("</body>", f"{PROBE}</body>"))
    dumped = subprocess.run(
        [
            *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
            *(["--blink-settings=preferredColorScheme=0"] if dark else []),
            *(f"--window-size={width},1000", f"file://{folder / 'page.html'}"),
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = re.search(r'data-bad="([^"]*)"', dumped)
    assert found is not None, "the page did not load"
    return json.loads(html.unescape(found[1]))


@pytest.mark.parametrize(
    ("spec", "method"),
    [
        ("timm:resnet50", "dsnet(per=stage)"),
        ("timm:resnet50", "lcnet"),
        ("timm:vit_base_patch16_224", "routing"),
        ("hf:BertModel", "lcnet(channels=False)"),
        ("torchvision:densenet121", "dsnet(gate=False)"),
    ],
)
def test_networks_are_readable(spec: str, method: str, tmp_path: Path) -> None:
    source = load(spec)
    page = build_report(dc.dynamize(source.model, method, source.kwargs or source.args), title=spec)
    for width in (1280, 420):
        assert problems(page, tmp_path, width) == []
    assert problems(page, tmp_path, 1280, dark=True) == []


def test_results_are_readable(tmp_path: Path) -> None:
    model, _ = handmade.resnet()
    images, labels = torch.randn(60, 3, 8, 8), torch.randint(5, (60,))
    dyn = dc.dynamize(model, ["dsnet(divisor=2, minimum=2)", "lcnet(channels=False)"], images[:2])
    page = build_report(dyn, TensorDataset(images, labels), title="a name " * 30)
    assert page.count("<figure>") == 12
    for width in (1280, 420):
        assert problems(page, tmp_path, width) == []


def test_the_probe_sees_what_is_wrong(tmp_path: Path) -> None:
    text = "<text x='0' y='20'>one</text><text x='5' y='20'>two</text><text x='95' y='20'>three</text>"
    page = f"<body><svg viewBox='0 0 100 40' width='100'>{text}</svg><img src='data:,'></body>"
    found = problems(page, tmp_path, 600)
    assert {word.split(":")[0] for word in found} == {"overlap", "sticks out", "a picture does not show"}
