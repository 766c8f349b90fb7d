"""Fitted estimators as files that can be shared: reading one runs no code."""

from .card import model_card
from .safe import load, save

__all__ = ["load", "model_card", "save"]
