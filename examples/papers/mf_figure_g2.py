"""
Learning rates that explode, small batches
==========================================

[MF] figure G.2: as figure 2(a) (``mf_figure_2a.py``), for one epoch in batches of 20.
"""

from __future__ import annotations

from mf_shared import draw_maps, explosion_claims, rate_row
from study import Study

COMMON = {
    "activation": ["tanh", "relu"],
    "lowest": 1e-3,
    "highest": 1.0,
    "batch_size": 20,
    "momentum": 0.9,
    "output": "linear",
}
SCALES = {
    "tiny": {**COMMON, "width": [20, 60], "n_train": 300, "n_rates": 7, "n_steps": None},
    "small": {**COMMON, "width": [50, 100, 200], "n_train": 4000, "n_rates": 9, "n_steps": None},
    "paper": {**COMMON, "width": [50, 100, 200, 300, 400, 500], "n_train": 60000, "n_rates": 25, "n_steps": None},
}


def run(data, **settings):
    return rate_row(data, **settings)


STUDY = Study(
    paper="[MF] figure G.2",
    statement="With batches of 20 as well, training explodes above the critical rate of theorem 6.",
    data="mnist",
    scales=SCALES,
    run=run,
    draw=draw_maps,
    claims=explosion_claims,
)

if __name__ == "__main__":
    STUDY.main()
