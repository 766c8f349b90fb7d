"""Sphinx configuration: pages written from the source, a gallery that is executed, formulas that need no network."""

from __future__ import annotations

import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

from measure_pages import write_measures  # noqa: E402
from result_pages import write_results  # noqa: E402
from written_pages import write_api_pages, write_changes  # noqa: E402

import sklearn_capacity  # noqa: E402

write_measures(HERE / "generated")
write_api_pages(HERE / "generated")
write_changes(HERE.parent / "changes", HERE / "generated")
write_results(HERE / "results", HERE.parent / "examples" / "papers", HERE / "generated")

project = "sklearn_capacity"
author = "sklearn_capacity developers"
project_copyright = f"2026, {author}"
version = release = sklearn_capacity.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "numpydoc",
]
exclude_patterns = ["_build", "_ext", "_templates", "generated/*.inc"]
templates_path = ["_templates"]

html_theme = "pydata_sphinx_theme"
html_title = project
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["tables.js"]
html_sidebars = {"index": [], "start": []}  # these have no pages below them
html_theme_options = {
    "navbar_align": "left",
    "header_links_before_dropdown": 6,
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": ["sphinx-version"],
}
html_show_sourcelink = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# `-D plot_gallery=0` shows the scripts without running them.
sphinx_gallery_conf = {
    "examples_dirs": ["../examples"],
    "gallery_dirs": ["gallery"],
    "ignore_pattern": r"papers/",
    "filename_pattern": r"/plot_",
    "within_subsection_order": "FileNameSortKey",
    "backreferences_dir": "generated/backreferences",
    "doc_module": ("sklearn_capacity",),
    "show_memory": False,
    "write_computation_times": False,
    "download_all_examples": False,
    "remove_config_comments": True,
    "min_reported_time": 5,
    "abort_on_example_error": True,
}

autosummary_generate = True
autodoc_typehints = "none"  # numpydoc's sections describe it in words
numpydoc_show_class_members = False  # the class template lists them, once
numpydoc_xref_param_type = False
# A list of sources need not be cited in the text next to it.
suppress_warnings = ["ref.citation", "ref.footnote"]


def skip_foreign_members(app, what, name, member, skip, options):
    """Leave out what scikit-learn, skorch and torch document themselves."""
    function = getattr(member, "fget", None) or getattr(member, "__func__", member)
    module = getattr(function, "__module__", None)
    return True if module is not None and not module.startswith("sklearn_capacity") else skip


# `(n, *input_shape)` is how docstrings write shapes; to docutils it is the beginning of emphasis.
STARRED = re.compile(r"(?<![\\\w*`])\*([\w.]*?)(_?)(?=[,)])")


def escape_starred_shapes(app, what, name, thing, options, lines):
    """Show the star of a shape as a star."""
    lines[:] = [STARRED.sub(lambda m: f"\\*{m[1]}" + ("\\_" if m[2] else ""), line) for line in lines]


def setup(app):
    app.connect("autodoc-process-docstring", escape_starred_shapes, priority=900)  # after numpydoc
    app.connect("autodoc-skip-member", skip_foreign_members)
