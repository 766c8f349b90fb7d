"""Generalization layers, their insertion and schedules, and image augmentation.

`generalization` (layers with a skip, [GL] 3.1), `dropout` ([GL] 3.2), `insertion` (into any module),
`schedules` (of nu and of the slow rate), `initialization` (He's), `augmentation` (crops and flips on the device).
Read `generalization` first, then `insertion`.

Data flow: module, position -> insert_generalization_layer -> a new module.
"""

from sklearn_capacity.layers.augmentation import crop_flip, random_crop, random_flip, resolve_augmentation
from sklearn_capacity.layers.dropout import ConvGeneralizationDropout, GeneralizationDropout
from sklearn_capacity.layers.generalization import (
    ConvGeneralizationLayer,
    GeneralizationLayer,
    GeneralizationWrap,
    SkipLayer,
    generalization_layers,
    generalization_parameters,
    set_nu,
)
from sklearn_capacity.layers.initialization import he_initialize
from sklearn_capacity.layers.insertion import insert_generalization_layer
from sklearn_capacity.layers.schedules import nu_schedule, slow_learning_factor, slow_start

__all__ = [
    "ConvGeneralizationDropout",
    "ConvGeneralizationLayer",
    "GeneralizationDropout",
    "GeneralizationLayer",
    "GeneralizationWrap",
    "SkipLayer",
    "crop_flip",
    "generalization_layers",
    "generalization_parameters",
    "he_initialize",
    "insert_generalization_layer",
    "nu_schedule",
    "random_crop",
    "random_flip",
    "resolve_augmentation",
    "set_nu",
    "slow_learning_factor",
    "slow_start",
]
