"""Sphinx configuration. Nothing is executed here: examples are shown as they stand, doctests run in the test suite."""

from __future__ import annotations

import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

from measure_pages import write_measures  # noqa: E402
from written_pages import write_api_page, write_example_pages  # noqa: E402

import sklearn_capacity  # noqa: E402

write_measures(HERE / "generated")
write_api_page(HERE / "generated")
write_example_pages(HERE.parent / "examples", HERE / "generated")

project = "sklearn_capacity"
author = "sklearn_capacity developers"
project_copyright = f"2026, {author}"
version = release = sklearn_capacity.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "numpydoc",
]
exclude_patterns = ["_build", "_ext", "_templates"]
templates_path = ["_templates"]
html_theme = "alabaster"
html_static_path: list[str] = []
html_theme_options = {
    "description": "Capacity of neural networks, controlled and measured in scikit-learn",
    "page_width": "1100px",
    "sidebar_width": "260px",
    "fixed_sidebar": True,
}

autosummary_generate = True
autodoc_typehints = "none"  # numpydoc's sections say it in words
numpydoc_show_class_members = False  # the class template lists them, once
numpydoc_xref_param_type = False
# A list of sources need not be cited in the text beside it.
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
