"""Look at every page of the built site in a headless browser: `python docs/check_site.py [FOLDER]`.

At a narrow and a wide window, no page and no table scrolls sideways, no image is missing, and every formula is
rendered; every internal link and its anchor exist. What newcomers search for leads to the page that answers it. Needs
the package playwright and a Chromium of the system.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from playwright.sync_api import Page, sync_playwright

# A page is loaded at the first, where `tables.js` takes its decisions, and widened to the second.
WIDTHS = (400, 1280)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Run in the page: its width, what exceeds it, tables that scroll, images without pixels, TeX that is still TeX, anchors
# and links.
INSPECT = r"""
() => {
  const width = document.documentElement.clientWidth;
  const text = document.querySelector("article")?.innerText ?? "";
  return {
    width, scroll: document.documentElement.scrollWidth,
    wide: [...document.querySelectorAll("article *")].filter((e) => e.getBoundingClientRect().right > width + 1)
      .slice(0, 3).map((e) => e.outerHTML.slice(0, 80)),
    tables: [...document.querySelectorAll("article table.table")]
      .filter((t) => t.scrollWidth > t.parentElement.clientWidth + 1).map((t) => t.innerText.slice(0, 40)),
    images: [...document.images].filter((i) => i.complete && !i.naturalWidth).map((i) => i.src),
    tex: [...document.querySelectorAll(".math")].filter((e) => !e.querySelector("mjx-container")).length
      + document.querySelectorAll("mjx-merror, [data-mjx-error]").length + (/\\\(|\\\[|\\frac/.test(text) ? 1 : 0),
    links: [...document.querySelectorAll("a[href]")].map((a) => a.href),
    ids: [...document.querySelectorAll("[id]")].map((e) => e.id),
  };
}
"""
# What a newcomer types into the search -> pages of which one must be among the first three results.
SEARCHES = {
    "overfitting": ("faq",),
    "compare models": ("faq", "comparing"),
    "nan": ("faq", "read_your_numbers"),
    "inf": ("faq", "read_your_numbers"),
    "transformer": ("faq",),
    "save": ("faq", "persistence", "generated/api/sklearn_capacity.save"),
    "GPU": ("faq", "distributed"),
    "own loss": ("faq",),
    "early stopping": ("faq", "epochs"),
    "pipeline": ("faq",),
    "batch norm": ("faq",),
    "memory": ("faq", "large_data"),
    "slow": ("faq", "large_data"),
    "regression": ("faq",),
    "string labels": ("faq",),
    "class imbalance": ("faq", "gallery/plot_11_class_imbalance"),
    "which measure": ("faq", "which_measure"),
    "reproducible": ("faq",),
    "cite": ("faq", "about"),
    "version": ("faq",),
    "skorch": ("faq", "skorch"),
    "install without CUDA": ("faq", "start"),
    "softmax": ("faq",),
    "data loader": ("faq",),
    "own measure": ("faq", "own_measure"),
    "negative margin": ("faq", "read_your_numbers"),
    "resume": ("faq", "persistence"),
    "verification": ("verification",),
    "DataFrame": ("faq",),
    "missing values": ("faq",),
    "learning rate": ("faq",),
    "diverged": ("faq",),
    "dropout": ("faq",),
    "weight decay": ("faq",),
    "hinge loss": ("faq", "estimators"),
    "probabilities": ("faq",),
    "pretrained": ("faq",),
    "sample weights": ("faq",),
    "time series": ("faq", "images_and_series", "gallery/plot_10_series"),
    "training set size": ("faq", "comparing"),
    "robustness": ("faq",),
    "tolerance": ("faq", "landscape"),
    "multilabel": ("faq",),
    "progress": ("faq",),
    "LSTM": ("faq",),
    "plain PyTorch": ("training_loop", "faq"),
    "custom loss": ("faq",),
    "validation loss": ("faq", "epochs"),
}
N_RESULTS = 3
SEARCHED = r"() => document.querySelector('#search-results .search-summary')?.innerText.match(/finished|did not match/)"
RENDERED = "() => !window.MathJax || !MathJax.startup || MathJax.startup.promise.then(() => true)"


def look(page: Page, path: Path) -> dict[int, dict]:
    """What `INSPECT` finds on a page at each width."""
    found = {}
    page.set_viewport_size({"width": WIDTHS[0], "height": 900})
    page.goto(path.as_uri())
    page.wait_for_function(RENDERED)
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        found[width] = page.evaluate(INSPECT)
    return found


def complaints(layout: dict, path: str, width: int) -> list[str]:
    """One line for each fault of a page."""
    lines = []
    if layout["scroll"] > layout["width"]:
        lines.append(f"{path} at {width}: scrolls to {layout['scroll']} pixels, {layout['wide']}")
    lines += [f"{path} at {width}: a table is too wide, {table!r}" for table in layout["tables"]]
    lines += [f"{path} at {width}: no image {source}" for source in layout["images"]]
    if layout["tex"]:
        lines.append(f"{path} at {width}: {layout['tex']} formulas are not rendered")
    return lines


def dead_links(pages: dict[Path, dict]) -> list[str]:
    """Links to missing files, or to anchors that do not exist on their page."""
    lines = []
    for path, layout in pages.items():
        for link in sorted(set(layout["links"])):
            parts = urlsplit(link)
            if parts.scheme != "file":
                continue
            target = Path(unquote(parts.path))
            if not target.exists():
                lines.append(f"{path.name}: {link} leads nowhere")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target]["ids"]:
                lines.append(f"{path.name}: {link} has no such anchor")
    return lines


def failed_searches(page: Page, folder: Path) -> list[str]:
    """Searches whose answer is not among the first results."""
    lines = []
    for query, answers in SEARCHES.items():
        page.goto(f"{(folder / 'search.html').as_uri()}?q={quote(query)}")
        page.wait_for_function(SEARCHED)
        links = page.eval_on_selector_all("#search-results ul.search > li > a", "links => links.map(a => a.href)")
        paths = [Path(unquote(urlsplit(link).path)) for link in links[:N_RESULTS]]
        if not {folder / f"{answer}.html" for answer in answers} & set(paths):
            lines.append(f"search for {query!r}: {', '.join(path.stem for path in paths)} instead of {answers[0]}")
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
            found = look(page, path)
            for width, layout in found.items():
                wrong += complaints(layout, str(path.relative_to(folder.resolve())), width)
            pages[path] = found[WIDTHS[0]]
            if number % 50 == 0:
                print(f"{number} of {len(paths)} pages", flush=True)
        wrong += failed_searches(page, folder.resolve())
        browser.close()
    wrong += dead_links(pages)
    print("\n".join([*wrong, f"{len(paths)} pages at {len(WIDTHS)} widths: {len(wrong)} faults"]))
    if wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parent / "_build" / "html")
