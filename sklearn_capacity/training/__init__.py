"""Training loops: skorch nets with a penalty, and the parts around them.

`net` is the skorch net, on the base of `interruptible_net`, which says where Ctrl-C ended a training; `penalty_terms`
calls its penalties, `objectives` supports optimisers that evaluate a batch more than once, `batches` supplies the data.
Small steps are mostly bookkeeping: `stack_gradients` and `unobserved_step` leave it out where nobody could notice, and
`direct_pass` does for predictions; `plain_modules` says where that is.
Optimisers: `optimizers` by name, `kfac` with `kronecker`, `path_sgd`, `sam`; `weight_decay` on chosen parameters.
Callbacks: `callbacks`, `schedules` (learning rates), `regime` (generalization layers). Checkpoints: `checkpoints`,
`run_state` (all that the next epoch depends on), `behaviour` (detects changed definitions). `devices` and `seeding`
choose the device and the random numbers. Read `net` first, then `batches`.

Data flow: X, y -> TensorData -> batches -> net.train_step -> loss + penalties -> optimiser -> history.
"""

from sklearn_capacity.training.batches import TensorBatch, TensorBatches, TensorData, embedding_cure, to_tensor
from sklearn_capacity.training.callbacks import DivergenceCheck, EpochProgress, StopAtError, StopBelow
from sklearn_capacity.training.checkpoints import CheckpointFolder, CheckpointWriter, resumable_fit
from sklearn_capacity.training.devices import resolve_device
from sklearn_capacity.training.direct_pass import DirectPass, direct_pass
from sklearn_capacity.training.kfac import KFAC
from sklearn_capacity.training.net import PenalizedClassifier, PenalizedNet, PenalizedRegressor
from sklearn_capacity.training.optimizers import OPTIMIZERS, resolve_optimizer
from sklearn_capacity.training.path_sgd import PathSGD
from sklearn_capacity.training.regime import NuSchedule, SlowLearning
from sklearn_capacity.training.sam import SAM
from sklearn_capacity.training.schedules import LearningRateSchedule, TorchSchedule, make_schedule, set_learning_rates
from sklearn_capacity.training.seeding import seeded
from sklearn_capacity.training.weight_decay import decay_groups, decay_of, largest_decay

__all__ = [
    "KFAC",
    "OPTIMIZERS",
    "SAM",
    "CheckpointFolder",
    "CheckpointWriter",
    "DirectPass",
    "DivergenceCheck",
    "EpochProgress",
    "LearningRateSchedule",
    "NuSchedule",
    "PathSGD",
    "PenalizedClassifier",
    "PenalizedNet",
    "PenalizedRegressor",
    "SlowLearning",
    "StopAtError",
    "StopBelow",
    "TensorBatch",
    "TensorBatches",
    "TensorData",
    "TorchSchedule",
    "embedding_cure",
    "decay_groups",
    "decay_of",
    "direct_pass",
    "largest_decay",
    "make_schedule",
    "resolve_device",
    "resolve_optimizer",
    "resumable_fit",
    "seeded",
    "set_learning_rates",
    "to_tensor",
]
