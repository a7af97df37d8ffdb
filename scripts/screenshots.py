"""Makes the pictures of the report in docs/figures, of the demonstration sweep.

    make sweep ARGS=controls.shuffled=1 && python scripts/screenshots.py [SWEEP_DIRECTORY]

The browser is Debian's chromium (scripts/browser.sh).
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).parent.parent
TO = ROOT / "docs" / "figures"
COLOURS = 128
"""Of a picture: enough for a page, at a quarter of the size."""
DESKTOP, PHONE = {"width": 1160, "height": 1500}, {"width": 390, "height": 1300}


def main(sweep: Path) -> None:
    """Light and dark on a desk, and on a phone."""
    program = shutil.which("chromium")
    if program is None:
        raise SystemExit("no chromium: scripts/browser.sh installs it")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto((sweep.resolve() / "report.html").as_uri())
        page.wait_for_selector("html[data-charts=ready]", state="attached")
        shots = [
            ("light", DESKTOP, "answer"),
            ("dark", DESKTOP, "heatmaps"),
            ("light", DESKTOP, "replies"),
            ("light", PHONE, "heatmaps"),
        ]
        for scheme, size, section in shots:
            page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
            page.set_viewport_size({"width": size["width"], "height": size["height"]})
            page.wait_for_timeout(1000)  # the charts take the new width
            page.wait_for_selector("html[data-charts=ready]", state="attached")
            name = "phone" if size is PHONE else f"{section}-{scheme}"
            save(page, section, TO / f"report-{name}.png")
        browser.close()


def save(page: Page, section: str, path: Path) -> None:
    """What is seen of a page from a section on."""
    page.evaluate("id => document.getElementById(id).scrollIntoView()", "answer" if section == "answer" else section)
    if section == "answer":
        page.evaluate("scrollTo(0, 0)")
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB").quantize(COLOURS)
    picture.save(path, optimize=True)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "outputs" / "demo")
