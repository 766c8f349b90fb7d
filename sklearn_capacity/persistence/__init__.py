"""Fitted estimators as files that can be shared: reading one runs no code.

`safe` writes and reads them in the file format of `storage`; `card` describes a trained network in markdown.

Data flow: estimator -> save -> safetensors file -> load -> estimator.
"""

from .card import model_card
from .safe import load, save

__all__ = ["load", "model_card", "save"]
