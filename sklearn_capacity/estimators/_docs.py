"""Descriptions of parameters that several estimators share, written once and put into their docstrings."""

from __future__ import annotations

import inspect

__all__ = ["documented"]

_NETWORK = """
hidden_layer_sizes : int or sequence of int, default=(100,)
    Widths of the built-in MLP's hidden layers; () makes a linear model.
activation : str or callable, default="relu"
    "relu", "leaky_relu", "tanh", "sigmoid", "softplus", "gelu", "silu", "identity", or anything that
    returns a module when called without arguments.
bias : bool, default=True
batch_norm : bool, default=False
    Batch normalisation before each activation.
weight_norm : bool, default=False
    Keep the rows of every weight matrix at unit length.
dropout : float in [0, 1), default=0.0
    Probability of dropping a hidden unit.
module : None, str, callable or nn.Module, default=None
    None is the built-in MLP, which the six parameters above describe; with any other module they must
    keep their defaults. A string names an architecture of :mod:`sklearn_capacity.architectures`. A
    class or factory is called with those of ``input_shape``, ``n_features`` and ``n_outputs`` that its
    signature names, and with `module_params`. An instance is copied, weights included. The module returns
    %(outputs)s of shape (n_samples, n_outputs).
module_params : dict, default=None
    Arguments for `module`.
input_shape : tuple of int, default=None
    Shape of one sample, for example (1, 8, 8): rows of a two-dimensional X are then images, so that
    StandardScaler and the like work before the network. None: as X has it.
loss : %(losses)s, default="auto"
    %(loss_text)s
optimizer : str or callable, default="adam"
    "adam", "adamw", "sgd", "rmsprop", "lbfgs" (use a `batch_size` of at least n_samples), "nadam",
    "adagrad", "adadelta", "kfac" (natural gradient), "path_sgd" (rectifier chains), "sam"
    (sharpness-aware, with the ``rho``, ``adaptive`` and ``base`` of `optimizer_params`), an optimiser class of torch
    or a callable ``(params, lr=...)``.
optimizer_params : dict, default=None
    More arguments for the optimiser.
learning_rate : float > 0, default=0.01
learning_rate_schedule : default=None
    Changes the learning rate from epoch to epoch. "cosine": down to 0 at `max_epochs`. A list of (epoch,
    factor) pairs: from that epoch on (the first one is 0) the rate is multiplied by the factor. A list of
    numbers: the factor of each epoch, the last one goes on. A callable: ``factor(epoch)``. A scheduler
    class of torch, or a ``functools.partial`` of one. Epochs count on in `partial_fit` and with `warm_start`.
momentum : float in [0, 1), default=0.9
    For optimisers that have one ("sgd", "rmsprop").
weight_decay : float >= 0, default=0.0
penalty : callable, default=None
    ``penalty(module, X, sample_weight=None)`` returns a scalar tensor that is added to the loss of each training
    batch. The module is in training mode. `sample_weight` may be missing from its signature; copied before use. See
    :func:`sklearn_capacity.penalties.check_penalty`.
penalty_strength : float >= 0, default=1.0
    What `penalty` is multiplied by; 0 leaves it out.
max_epochs : int >= 1, default=50
batch_size : int >= 1, default=128
    A last batch of a single sample is merged into the one before it.
stop_below : float >= 0, default=None
    Stop after the first epoch whose mean training loss, without penalty, lies below this value.
early_stopping : bool, default=False
    Set `validation_fraction` of the data aside, stop when the loss there has not fallen by `tol` in
    `n_iter_no_change` epochs, and restore the weights of the best epoch. Hides `partial_fit`.
validation_fraction : float in (0, 1), default=0.1
    With `early_stopping` only%(stratified)s.
n_iter_no_change : int >= 1, default=10
    With `early_stopping` only.
tol : float >= 0, default=1e-4
    With `early_stopping` only.
"""

_CLASS_WEIGHT = """
class_weight : dict, "balanced" or None, default=None
    Weights of the classes by label; "balanced" is n_samples / (n_classes * count). They multiply
    `sample_weight`.
"""

_RUN = """
augmentation : {"crop_flip", "crop", "flip"}, callable or None, default=None
    Change the images of each training batch at random, on the device: "crop" shifts each by up to an eighth of its
    size, "flip" mirrors every second one. A callable is called as ``augmentation(X, generator)`` with a batch and a
    CPU generator.
callbacks : list, default=None
    Callbacks of skorch, copied before use. ``callbacks__name__parameter`` in a grid sets a parameter of the one that
    is given as (name, callback), or has a class of that name.
dtype : {"auto", "float32", "float64"}, default="auto"
    Precision of weights and data; "auto" is that of X (float64 for integers). float32 is faster.
device : str or torch.device, default="auto"
    "auto" is the CPU, or, where there are GPUs, one of them for each joblib worker in turn.
random_state : int, RandomState instance or None, default=None
    Initial weights, order of batches, dropout, validation part. An integer gives the same bits again at
    an equal number of threads, also in joblib's threading backend, where fits take turns.
verbose : int, default=0
    1 shows a progress bar over the epochs.
warm_start : bool, default=False
    `fit` goes on from the fitted network for `max_epochs` more epochs, with the parameters as they are now;
    the optimiser's state is kept unless its own parameters have changed.
checkpoint_dir : str or path, default=None
    `fit` writes the state of the training into a folder below this one, named by a hash of the parameters, the data
    and the seed. Killed and called again, it goes on from there to the same bits (CPU, equal number of threads);
    once finished it loads the result. Needs an integer `random_state`.
checkpoint_every : int >= 1, default=1
    Epochs between two checkpoints.
"""

_JACOBIAN = """
jacobian_penalty : float >= 0, default=0.01
    Strength of the penalty; the training minimises ``loss + jacobian_penalty * R``. 0 is the plain network.
jacobian_norm : {"frobenius", "projection", "spectral", "per_layer"}, default="frobenius"
    R. "frobenius": the mean of ||J(x)||_F^2, exact; a step costs about as much as n_outputs plain ones. "projection":
    an unbiased estimate of it from `n_projections` random directions, each about as much as a plain step. "spectral":
    the mean of the squared spectral norm ||J(x)||_2^2, about half as much as "frobenius". "per_layer": another and
    cheaper penalty, which sees one layer and one random output at a time, see
    :func:`sklearn_capacity.penalties.per_layer_penalty`; strengths do not carry over to it.
n_projections : int in [1, n_outputs], default=1
    With ``jacobian_norm="projection"`` only.
jacobian_output : {"logits", "softmax"}, default="logits"
    What is differentiated with respect to the input.
"""

_GENERALIZATION_LAYER = """
variant : {"skip", "dropout"}, default="skip"
    The layer of [GL] section 3.1 or of section 3.2. "dropout" is trained as any layer is; the parameters up to
    `layer_depth`, but for `position` and `layer_form`, concern "skip" only.
position : str, int or None, default="head"
    Where it goes: "head" is the last linear map, a name or an index is a submodule of the network (of `module`,
    or of the built-in MLP). None: the module has its own generalization layers, as "resnet20_gl" has.
nu_start, nu_end : float > 0, default=1.0 and 0.1
    First and last strength of the skip.
nu_decay_fraction : float in [0, 1], default=0.8
    Share of `max_epochs` in which nu goes, linearly, from one to the other.
slow_factor : float >= 0, default=0.1
    The layer's own weights learn with this fraction of the learning rate, from epoch `slow_after` on.
slow_after : int or float in [0, 1], default=20
    The first epoch at the slow rate; a float is a fraction of `max_epochs`.
layer_form : {"wrap", "block", "conv3x3"} or None, default=None
    How it is inserted, see :func:`sklearn_capacity.layers.insert_generalization_layer`. None: "wrap" for "skip",
    "block" for "dropout".
layer_depth : {1, 2}, default=1
    Linear maps in the layer.
layer_dropout : float in [0, 1), default=0.5
    Probability of dropping a unit of the layer; for "dropout" only.
"""

_ATTRIBUTES = """
n_features_in_ : int
    Number of elements of one sample.
feature_names_in_ : ndarray of str
    Only if X has string column names.
input_shape_ : tuple of int
    Shape of one sample as the module gets it.
loss_name_ : str
    The loss that was minimised: "cross_entropy", "squared" or "absolute".
n_iter_ : int
    Epochs trained.
history_ : skorch.history.History
    One dict per epoch: ``train_loss`` (without penalty, while the weights move), with early stopping ``valid_loss``
    and, of classifiers, ``valid_acc``, ``train_penalty`` (not multiplied by its strength; beside a Jacobian's,
    `penalty` is ``train_penalty_2``), ``dur`` and what callbacks add.
best_epoch_ : int
    With early stopping: the epoch whose weights the network has.
net_ : PenalizedNet
    The skorch net.
module_ : nn.Module
    The trained module.
initial_state_ : dict of str to Tensor
    The module's state before training, on the CPU.
n_samples_fit_ : int
    Samples trained on in the last fit, without the validation part and those of zero weight.
"""

_FILL = {
    "classifier": {
        "outputs": "logits",
        "losses": '{"auto", "cross_entropy"}',
        "loss_text": "Cross-entropy on the logits.",
        "stratified": "; stratified where the classes are large enough",
    },
    "regressor": {
        "outputs": "predictions",
        "losses": '{"auto", "squared", "absolute"}',
        "loss_text": 'Squared or absolute error, mean over samples and outputs; "auto" is "squared".',
        "stratified": "",
    },
}


def documented(kind: str, *, jacobian: bool = False, generalization_layer: bool = False):
    """Class decorator that fills ``{parameters}`` and ``{attributes}`` of a docstring for one kind of estimator."""
    parts = [_NETWORK % _FILL[kind], *([_CLASS_WEIGHT] if kind == "classifier" else []), _RUN]
    attributes = ("classes_ : ndarray of shape (n_classes,)\n" if kind == "classifier" else "") + _ATTRIBUTES.strip()
    if jacobian:
        parts.insert(0, _JACOBIAN.replace("default=0.01", "default=0.0") if generalization_layer else _JACOBIAN)
    if generalization_layer:
        parts.insert(0, _GENERALIZATION_LAYER)
    parameters = "\n".join(part.strip() for part in parts)

    def fill(cls: type) -> type:
        doc = inspect.cleandoc(cls.__doc__ or "") + "\n"  # without indent in every Python, as from 3.13 on anyway
        for name, text in (("parameters", parameters), ("attributes", attributes)):
            doc = doc.replace("{" + name + "}", text)
        cls.__doc__ = doc
        return cls

    return fill
