"""Descriptions of parameters that several estimators share, written once and inserted into their docstrings."""

from __future__ import annotations

import inspect

from sklearn_capacity.penalties import PARAMETER_PENALTIES

__all__ = ["documented"]

_NETWORK = """
hidden_layer_sizes : int or sequence of int, default=(100,)
    Widths of the built-in MLP's hidden layers; () for a linear model.
activation : str or callable, default="relu"
    "relu", "leaky_relu", "tanh", "sigmoid", "softplus", "gelu", "silu", "identity", or any callable that
    returns a module when called without arguments (a class, for example).
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
    class or factory is called with `module_params` and with those of ``input_shape``, ``n_features`` and
    ``n_outputs`` that its signature names. An instance is copied, weights included. The module must return
    %(outputs)s of shape (n_samples, n_outputs).
module_params : dict, default=None
    Arguments for `module`.
input_shape : tuple of int, default=None
    Shape of one sample, for example (1, 8, 8): the rows of a two-dimensional X are then reshaped to images, so
    that StandardScaler and the like can precede the network. None: the shape of the samples in X.
loss : %(losses)s, default="auto"
    %(loss_text)s
optimizer : str or callable, default="adam"
    "adam", "adamw", "sgd", "rmsprop", "lbfgs" (use a `batch_size` of at least n_samples), "nadam",
    "adagrad", "adadelta", "kfac" (natural gradient), "path_sgd" (rectifier chains), "sam"
    (sharpness-aware minimisation; `optimizer_params` sets ``rho``, ``adaptive`` and ``base``), an optimiser class
    from torch or a callable ``(params, lr=...)``.
optimizer_params : dict, default=None
    Further arguments of the optimiser.
learning_rate : float > 0, default=0.01
learning_rate_schedule : default=None
    Changes the learning rate from epoch to epoch. "cosine": decreases to 0 at `max_epochs`. A list of (epoch,
    factor) pairs: from that epoch on (the first is 0) the rate is multiplied by the factor. A list of
    numbers: one factor per epoch; the last applies to all further epochs. A callable: ``factor(epoch)``. A scheduler
    class from torch, or a ``functools.partial`` of one. `partial_fit` and `warm_start` continue the epoch count.
momentum : float in [0, 1), default=0.9
    For optimisers with momentum ("sgd", "rmsprop").
weight_decay : float >= 0 or dict from str to float, default=0.0
    A dict maps patterns of parameter names, as in ``module.named_parameters()``, to the strength for those parameters:
    ``{"*.weight": 1e-4}`` excludes biases, ``{"head.*": 1e-2}`` decays one submodule. The first pattern that matches a
    name counts; parameters that none matches are not decayed.
penalty : {%(penalties)s} or callable, default=None
    A name selects the function ``<name>_penalty`` of :mod:`sklearn_capacity.penalties`.
    ``penalty(module, X, sample_weight=None)`` returns a scalar tensor that is added to the loss of each training
    batch. The module is in training mode. The signature may omit `sample_weight`. The penalty is copied before use.
    See :func:`sklearn_capacity.penalties.check_penalty`.
penalty_strength : float >= 0, default=1.0
    Factor of `penalty`; 0 switches it off.
max_epochs : int >= 1, default=50
batch_size : int >= 1, default=128
    A last batch with a single sample is merged into the previous batch.
stop_below : float >= 0, default=None
    Stop after the first epoch whose mean training loss, without penalty, is below this value.
early_stopping : bool, default=False
    Hold out `validation_fraction` of the data, stop when the loss on it has not fallen by `tol` in
    `n_iter_no_change` epochs, and restore the weights of the best epoch. `partial_fit` is then unavailable.
validation_fraction : float in (0, 1), default=0.1
    Share of the data that `early_stopping` holds out%(stratified)s.
n_iter_no_change : int >= 1, default=10
    Epochs without improvement before `early_stopping` stops.
tol : float >= 0, default=1e-4
    Decrease of the validation loss that `early_stopping` counts as an improvement.
"""

_CLASSIFIER = """
stop_at_error : float in [0, 1), default=None
    Stop after the first epoch at whose end the share of misclassified training samples, in evaluation mode and with
    their weights, is at most this value; 0 is training error zero. It is recorded as ``train_error`` in `history_`, at
    the cost of a forward pass over the training data per epoch.
class_weight : dict, "balanced" or None, default=None
    Weights of the classes by label; "balanced" is n_samples / (n_classes * count). They multiply
    `sample_weight`.
"""

_RUN = """
augmentation : {"crop_flip", "crop", "flip"}, callable or None, default=None
    Random changes to the images of each training batch, applied on the device: "crop" shifts each image by up to an
    eighth of its size, "flip" mirrors each with probability 1/2. A callable is called as
    ``augmentation(X, generator)`` with a batch and a CPU generator.
callbacks : list, default=None
    skorch callbacks, copied before use. In a grid, ``callbacks__name__parameter`` sets a parameter of the callback
    that is given as (name, callback) or whose class has that name.
dtype : {"auto", "float32", "float64"}, default="auto"
    Precision of weights and data; "auto" is that of X (float64 for integers). float32 is faster.
device : str or torch.device, default="auto"
    "auto" is the CPU, or one of the GPUs if there are any, assigned to joblib's workers in turn.
random_state : int, RandomState instance or None, default=None
    Controls the initial weights, the order of batches, dropout and the validation part. With an integer the results
    are bitwise reproducible at an equal number of threads, also in joblib's threading backend, where fits take turns.
verbose : int, default=0
    1 shows a progress bar over the epochs.
warm_start : bool, default=False
    `fit` continues from the fitted network for `max_epochs` more epochs, with the current parameters;
    the optimiser's state is kept unless the optimiser's parameters have changed.
checkpoint_dir : str or path, default=None
    `fit` writes the state of training to a folder below this one, whose name is a hash of the parameters, the data
    and the seed. If it is killed, the same call resumes there and ends in the same bits (CPU, equal number of
    threads); after it has finished, the same call loads the result. Requires an integer `random_state`.
checkpoint_every : int >= 1, default=1
    Number of epochs between two checkpoints.
"""

_JACOBIAN = """
jacobian_penalty : float >= 0, default=0.01
    Strength of the penalty; training minimises ``loss + jacobian_penalty * R``. 0 switches it off.
jacobian_norm : {"frobenius", "projection", "spectral", "per_layer"}, default="frobenius"
    R. "frobenius": the mean of ||J(x)||_F^2, exact; with ten outputs a step costs as much as 4 to 11 plain steps.
    "projection": an unbiased estimate of it from `n_projections` random directions, of which one makes a step cost as
    much as 1.3 to 2.1 plain steps. "spectral": the mean of the squared spectral norm ||J(x)||_2^2, at about half the
    cost of "frobenius". "per_layer": a different, cheaper penalty on one layer and one random output at a time, see
    :func:`sklearn_capacity.penalties.per_layer_penalty`; its strengths are not comparable with those of the others.
n_projections : int in [1, n_outputs], default=1
    Number of random directions for ``jacobian_norm="projection"``.
jacobian_output : {"logits", "softmax"}, default="logits"
    The outputs that are differentiated with respect to the input.
"""

_GENERALIZATION_LAYER = """
variant : {"skip", "dropout"}, default="skip"
    The layer of [GL] section 3.1 or of section 3.2. "dropout" is trained like any other layer; the parameters up
    to `layer_depth`, except `position` and `layer_form`, apply to "skip" only.
position : str, int or None, default="head"
    Where the layer is inserted: "head" is the last linear map, a name or an index is a submodule of the network (of
    `module`, or of the built-in MLP). None: the module already has generalization layers, as "resnet20_gl" does.
nu_start, nu_end : float > 0, default=1.0 and 0.1
    Initial and final strength nu of the skip.
nu_decay_fraction : float in [0, 1], default=0.8
    Share of `max_epochs` over which nu decreases linearly from the first value to the second.
slow_factor : float >= 0, default=0.1
    Factor of the learning rate for the layer's own weights, from epoch `slow_after` on.
slow_after : int or float in [0, 1], default=20
    The first epoch at the slow rate; a float is a fraction of `max_epochs`.
layer_form : {"wrap", "block", "conv3x3"} or None, default=None
    How the layer is inserted, see :func:`sklearn_capacity.layers.insert_generalization_layer`. None: "wrap" for "skip",
    "block" for "dropout".
layer_depth : {1, 2}, default=1
    Number of linear maps in the layer.
layer_dropout : float in [0, 1), default=0.5
    Probability of dropping a unit of the layer; for "dropout" only.
"""

_ATTRIBUTES = """
n_features_in_ : int
    Number of elements of one sample.
feature_names_in_ : ndarray of str
    Names of the features; defined only if X has string column names.
input_shape_ : tuple of int
    Shape of one sample as the module receives it.
loss_name_ : str
    The loss that was minimised: "cross_entropy", "hinge", "squared" or "absolute".
n_iter_ : int
    Number of epochs trained.
history_ : skorch.history.History
    One dict per epoch: ``train_loss`` (without penalty, averaged while the weights change), ``train_penalty`` (before
    multiplication by its strength; if there is also a Jacobian penalty, that of `penalty` is ``train_penalty_2``),
    with early stopping ``valid_loss`` and, for classifiers, ``valid_acc``, ``dur``, and what callbacks add.
best_epoch_ : int
    With early stopping: the epoch whose weights the network has.
net_ : PenalizedNet
    The skorch net.
module_ : nn.Module
    The trained module.
initial_state_ : dict of str to Tensor
    The module's state before training, on the CPU.
n_samples_fit_ : int
    Number of training samples in the last fit, without the validation part and samples of zero weight.
"""

_FILL = {
    "classifier": {
        "outputs": "logits",
        "losses": '{"auto", "cross_entropy", "hinge"}',
        "loss_text": 'Cross-entropy of the logits ("auto"), or the hinge loss of Crammer and Singer, which gives no '
        "probabilities.",
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
    """Class decorator that fills ``{parameters}`` and ``{attributes}`` of a docstring for a kind of estimator."""
    names = ", ".join(f'"{name}"' for name in PARAMETER_PENALTIES)
    parts = [_NETWORK % {**_FILL[kind], "penalties": names}, *([_CLASSIFIER] if kind == "classifier" else []), _RUN]
    attributes = ("classes_ : ndarray of shape (n_classes,)\n" if kind == "classifier" else "") + _ATTRIBUTES.strip()
    if jacobian:
        parts.insert(0, _JACOBIAN.replace("default=0.01", "default=0.0") if generalization_layer else _JACOBIAN)
    if generalization_layer:
        parts.insert(0, _GENERALIZATION_LAYER)
    parameters = "\n".join(part.strip() for part in parts)

    def fill(cls: type) -> type:
        doc = inspect.cleandoc(cls.__doc__ or "") + "\n"  # Python 3.13 removes the indent itself; earlier ones do not
        for name, text in (("parameters", parameters), ("attributes", attributes)):
            doc = doc.replace("{" + name + "}", text)
        cls.__doc__ = doc
        return cls

    return fill
