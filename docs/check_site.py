"""Look at every page of the built site in a headless browser: `python docs/check_site.py [FOLDER]`.

At a wide and a narrow window, no page scrolls sideways, no image is missing, and every formula is rendered; every
internal link and its anchor exist. Needs the package playwright and a Chromium of the system.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

from playwright.sync_api import Page, sync_playwright

WIDTHS = (1280, 400)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Run in the page: its width, what exceeds it, images without pixels, TeX that is still TeX, anchors and links.
INSPECT = r"""
() => {
  const width = document.documentElement.clientWidth;
  const text = document.querySelector("article")?.innerText ?? "";
  return {
    width, scroll: document.documentElement.scrollWidth,
    wide: [...document.querySelectorAll("article *")].filter((e) => e.getBoundingClientRect().right > width + 1)
      .slice(0, 3).map((e) => e.outerHTML.slice(0, 80)),
    images: [...document.images].filter((i) => i.complete && !i.naturalWidth).map((i) => i.src),
    tex: [...document.querySelectorAll(".math")].filter((e) => !e.querySelector("mjx-container")).length
      + document.querySelectorAll("mjx-merror, [data-mjx-error]").length + (/\\\(|\\\[|\\frac/.test(text) ? 1 : 0),
    links: [...document.querySelectorAll("a[href]")].map((a) => a.href),
    ids: [...document.querySelectorAll("[id]")].map((e) => e.id),
  };
}
"""
RENDERED = "() => !window.MathJax || !MathJax.startup || MathJax.startup.promise.then(() => true)"


def look(page: Page, path: Path, width: int) -> dict:
    """What `INSPECT` finds on a page."""
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(path.as_uri())
    page.wait_for_function(RENDERED)
    return page.evaluate(INSPECT)


def complaints(found: dict, path: str, width: int) -> list[str]:
    """One line for each fault of a page."""
    lines = []
    if found["scroll"] > found["width"]:
        lines.append(f"{path} at {width}: scrolls to {found['scroll']} pixels, {found['wide']}")
    lines += [f"{path} at {width}: no image {source}" for source in found["images"]]
    if found["tex"]:
        lines.append(f"{path} at {width}: {found['tex']} formulas are not rendered")
    return lines


def dead_links(pages: dict[Path, dict]) -> list[str]:
    """Links to missing files, or to anchors that do not exist on their page."""
    lines = []
    for path, found in pages.items():
        for link in sorted(set(found["links"])):
            parts = urlsplit(link)
            if parts.scheme != "file":
                continue
            target = Path(unquote(parts.path))
            if not target.exists():
                lines.append(f"{path.name}: {link} leads nowhere")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target]["ids"]:
                lines.append(f"{path.name}: {link} has no such anchor")
    return lines


def main(folder: Path) -> None:
    """Look at all pages and exit with an error if there is any fault."""
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        raise SystemExit(f"No browser was found. Install Chromium; looked for {', '.join(BROWSERS)}.")
    paths = sorted(path for path in folder.resolve().rglob("*.html") if "_static" not in path.parts)
    if not paths:
        raise SystemExit(f"There is no page in {folder}. Run `make docs` first.")
    pages, wrong = {}, []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        page = browser.new_page()
        for number, path in enumerate(paths, 1):
            for width in WIDTHS:
                pages[path] = look(page, path, width)
                wrong += complaints(pages[path], str(path.relative_to(folder.resolve())), width)
            if number % 50 == 0:
                print(f"{number} of {len(paths)} pages", flush=True)
        browser.close()
    wrong += dead_links(pages)
    print("\n".join([*wrong, f"{len(paths)} pages at {len(WIDTHS)} widths: {len(wrong)} faults"]))
    if wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parent / "_build" / "html")
