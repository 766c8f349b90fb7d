"""What the README and the first page of the documentation show runs, as printed but for fewer epochs."""

from __future__ import annotations

import re
import textwrap

from structure import ROOT


def test_the_first_example_runs(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    short = textwrap.dedent(code).replace("max_epochs=20", "max_epochs=2")
    assert short != textwrap.dedent(code)
    names: dict = {}
    exec(compile(short, "README.md", "exec"), names)
    shown = capsys.readouterr().out
    assert "jacobian_penalty" in shown and len(shown.splitlines()) > len(names["search"].cv_results_["params"])
    assert names["search"].score(names["X"], names["y"]) > 0.5
