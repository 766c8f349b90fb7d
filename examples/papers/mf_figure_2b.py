"""
Learning rates that explode, CIFAR-10
=====================================

[MF] figure 2(b): training losses of tanh and ReLU networks over widths and learning rates, by SGD in batches of 500
with momentum 0.9, and the critical rate of theorem 6. The paper trains for one epoch, 100 steps for CIFAR-10; at scale
small there are 30 steps on 6,000 images, and each seed draws other images and weights.
"""

from __future__ import annotations

from mf_shared import draw_maps, explosion_claims, rate_row
from study import Study

COMMON = {
    "activation": ["tanh", "relu"],
    "lowest": 1e-3,
    "highest": 1.0,
    "batch_size": 500,
    "momentum": 0.9,
    "output": "linear",
}
SCALES = {
    "tiny": {**COMMON, "width": [20, 60], "n_train": 300, "n_rates": 7, "n_steps": 20},
    "small": {**COMMON, "width": [50, 100], "n_train": 6000, "n_rates": 9, "n_steps": 30},
    "paper": {**COMMON, "width": [50, 100, 200, 300, 400, 500], "n_train": 50000, "n_rates": 25, "n_steps": None},
}


def run(data, **settings):
    return rate_row(data, **settings)


STUDY = Study(
    paper="[MF] figure 2(b)",
    statement="Above the critical rate of theorem 6 training explodes, below it the explosive region is narrow, and "
    "wider networks need smaller rates.",
    data="cifar10",
    scales=SCALES,
    run=run,
    draw=draw_maps,
    claims=explosion_claims,
)

if __name__ == "__main__":
    STUDY.main()
