"""Ctrl-C at random moments leaves every setting of the process as it was."""

from __future__ import annotations

import random
import signal
import tempfile
import time

import numpy as np
import pytest
import torch
from torch import nn

from process_settings import changes, settings
from sklearn_capacity import NetworkClassifier, capacity_report, load, measure_capacity, save
from sklearn_capacity.penalties import frobenius_penalty

X, y = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32), np.arange(20) % 3


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attend, self.out = nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(6, 3)

    def forward(self, x):
        tokens = x.unsqueeze(1).repeat(1, 3, 1)
        return self.out(self.attend(tokens, tokens, tokens, need_weights=False)[0].mean(1))


attention, mlp = Attention(), nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
ENTRIES = {
    "measure": lambda: measure_capacity(mlp, X, y, ["l2_path_norm", "margin"]),
    "measure attention": lambda: measure_capacity(attention, X, y, ["fisher_rao_norm", "jacobian_frobenius"]),
    "penalty": lambda: frobenius_penalty(attention, torch.from_numpy(X)),
    "fit": lambda: NetworkClassifier((4,), max_epochs=3, random_state=0).fit(X, y),
    "report": lambda: capacity_report(attention, X, y, ["margin", "fisher_rao_norm"], per_layer=True),
    "save": lambda: saved(NetworkClassifier((4,), max_epochs=1, random_state=0).fit(X, y)),
}


def saved(model):
    with tempfile.TemporaryDirectory() as folder:
        save(model, f"{folder}/model.safetensors")
        return load(f"{folder}/model.safetensors")


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timer that interrupts")
@pytest.mark.filterwarnings("ignore:Training was interrupted")
@pytest.mark.parametrize("entry", ENTRIES)
def test_an_interrupt_leaves_nothing_changed(entry):
    call, draw = ENTRIES[entry], random.Random(entry)
    call()
    start = time.perf_counter()
    call()
    longest, before = time.perf_counter() - start, settings()
    modes = [module.training for module in attention.modules()]
    handler = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for _ in range(8):
            try:
                signal.setitimer(signal.ITIMER_REAL, draw.uniform(1e-4, longest))
                call()
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                pass
            assert changes(before) == {}
            assert [module.training for module in attention.modules()] == modes
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
