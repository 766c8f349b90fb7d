"""The divergence of noisy weights from a prior, and the PAC-Bayes bound ([EG] section 2.4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .._validation import check_integer, check_interval, check_numbers, check_option, shown
from ..derivatives.parameter_vector import parameter_vector
from ..derivatives.perturbation import FlatParameters, displacements
from ..graph import Network
from .batch import Batch
from .confidence_limits import kl_inverse, upper_limit
from .learned_parts import check_learned_parts
from .losses import mean_error
from .memory import Peak
from .pass_limits import NO_PASSES, UNSHARED, Parts
from .record import Measure, Measured, NotDefinedError
from .sharpness import check_tolerance, noise_scale

__all__ = ["FORMS", "MEASURES", "PRIORS", "SIGMAS", "kl_divergence", "pac_bayes_bound"]

FORMS = ("sqrt", "implicit", "kl")
PRIORS = ("zero", "initial")
#: Standard deviations 0.001 to 1, ten per decade. Fixed before any data are seen, as the union bound requires.
SIGMAS = tuple(10 ** (k / 10) for k in range(-30, 1))
#: Share of delta for estimating E L(w + v) from draws.
MONTE_CARLO_SHARE = 0.1
#: Number of draws for each sigma before one sigma is chosen for the bound.
PILOT_DRAWS = 10
#: Numbers that stay in the cache of a CPU in double precision, with a few temporaries.
IN_CACHE = 2**15
#: With a tolerance: draws before the first look at their limit.
FEWEST_DRAWS = 50


def kl_divergence(
    network: Network, batch: Batch, *, alpha: float = 1e-3, noise: str = "magnitude", sigma: float | None = None
) -> Measured:
    r"""Kullback-Leibler divergence of the noisy weights from noise around zero.

    .. math:: \sum_i \frac{w_i^2}{2 s_i^2}

    between N(w, s^2) and N(0, s^2), where w holds the trainable parameters after folding batch norm ([EG] section 2.4;
    its appendix A omits the 1/2). Smaller values suggest better generalisation at the same expected sharpness. With
    magnitude noise the value is at most P / (200 alpha^2) for any weights.

    Parameters
    ----------
    alpha : float > 0, default=1e-3
        Scale of the magnitude noise.
    noise : "magnitude" or "spherical", default="magnitude"
        s_i = alpha (10 abs(w_i) + 1), or s_i = sigma for every parameter.
    sigma : float > 0, default=None
        Standard deviation of the spherical noise.

    Notes
    -----
    Needs no forward pass.

    References
    ----------
    Neyshabur, Bhojanapalli, McAllester, Srebro (2017), Exploring generalization in deep learning, eq. 8 and appendix A.

    Examples
    --------
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Linear(2, 1, bias=False)
    >>> _ = net.weight.data.fill_(3.0)
    >>> measure_capacity(net, measures={"kl": ("kl_divergence", {"noise": "spherical", "sigma": 1.0})})
    {'kl': 9.0}
    """

    def squares(part: Tensor) -> Tensor:
        weights = part.double()
        ratios = weights / noise_scale(weights, alpha, noise, sigma)  # (entries of the part,)
        return torch.dot(ratios, ratios)

    parts = (part for t in parameter_vector(network).tensors for part in t.detach().flatten().split(IN_CACHE))
    return Measured(float(torch.stack([squares(part) for part in parts]).sum()) / 2)


def pac_bayes_bound(
    network: Network,
    batch: Batch,
    *,
    delta: float = 0.05,
    form: str = "sqrt",
    prior: str = "zero",
    sigmas: Sequence[float] = SIGMAS,
    n_draws: int = 1000,
    noise: str = "spherical",
    tolerance: float | None = None,
) -> Measured:
    r"""Upper bound on the error of the network with Gaussian noise on its weights.

    With probability 1 - delta over the training data and the draws, for m samples, v ~ N(0, sigma^2 I), the empirical
    error rate :math:`\hat L` and :math:`KL = \|w - w_0\|^2 / (2 \sigma^2)`:

    .. math::
        E_v L(w + v) \le \hat L + 4 \sqrt{(KL + \ln(2m / \delta)) / m} \quad \text{(sqrt)}

        E_v L(w + v) \le \hat L + \sqrt{\hat L K} + K, \quad K = 2 (KL + \ln(2m / \delta)) / (m - 1)
        \quad \text{(implicit)}

        kl(\hat L, E_v L(w + v)) \le (KL + \ln(2 \sqrt m / \delta)) / m \quad \text{(kl)}

    Here :math:`\hat L` is replaced by an upper confidence limit of :math:`E_v \hat L(w + v)` from the draws, which uses
    a tenth of delta; the rest is divided among the sigmas. w holds the trainable parameters after folding batch norm,
    the loss is the 0-1 loss, and the bound applies to the **noisy** network on new data from the same distribution. A
    value above 1 is vacuous.

    X and y must be all the samples that the network was trained on, and no untrained part (frozen layers) may depend on
    them.

    Parameters
    ----------
    delta : float in (0, 1), default=0.05
    form : "sqrt", "implicit" or "kl", default="sqrt"
        Ordered from the loosest to the tightest for values below 1; only "kl" never exceeds 1.
    prior : "zero" or "initial", default="zero"
        Mean w_0 of the prior: zero ([EG]), or the weights before training (`initial_state_`), which do not depend on
        the data either and are far closer. Their batch norm is folded with its initial statistics, mean 0 and variance
        1.
    sigmas : sequence of float > 0, default=0.001 to 1 in 31 steps
        Candidate standard deviations, fixed before the data were seen.
    n_draws : int >= 1, default=1000
        Number of independent draws at the chosen sigma. With a `tolerance`, the largest number.
    noise : "spherical", default="spherical"
        Magnitude noise is refused.
    tolerance : float > 0, default=None
        Stop drawing once the upper limit exceeds the mean of the draws by at most this. It is looked at after n_draws
        divided by 2, 4, 8, ... draws, which share the limit's part of delta, so that the bound stays valid. (The
        standard error would not do: it may be 0 when the limit is still far.)

    Returns
    -------
    Measured
        The chosen sigma, the empirical error and its upper limit, and the divergence are in `info`.

    Raises
    ------
    ValueError
        For magnitude noise: its prior would depend on the learned weights and thus on the data.
    NotDefinedError
        For prior="initial" if the weights before training are unknown; or if a part of the network that carries no
        noise was learned from the data.

    Notes
    -----
    A few draws per sigma choose the most promising one, which the union bound allows; new draws then give the bound. In
    total about `n_draws` + 10 forward passes per sigma over all the data.

    References
    ----------
    Neyshabur et al. (2017), Exploring generalization in deep learning, eqs. 5-8; McAllester (2003), Simplified
    PAC-Bayesian margin bounds; Maurer (2004), A note on the PAC Bayesian theorem; Langford and Caruana (2001), (Not)
    bounding the true error; Maurer and Pontil (2009), Empirical Bernstein bounds.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_capacity import NetworkClassifier, measure_capacity
    >>> X = np.random.default_rng(0).normal(size=(2000, 2))
    >>> y = X[:, 0] > 0
    >>> model = NetworkClassifier(hidden_layer_sizes=(), max_epochs=20, random_state=0).fit(X, y)
    >>> bound = {"bound": ("pac_bayes_bound", {"prior": "initial", "form": "kl", "n_draws": 200})}
    >>> measure_capacity(model, X, y, bound)["bound"] < 0.25
    True
    """
    check_interval("delta", delta, 0, 1, closed="neither")
    check_option("form", form, FORMS)
    check_option("prior", prior, PRIORS)
    check_integer("n_draws", n_draws)
    check_tolerance(tolerance)
    _check_noise(noise)
    grid = check_numbers("sigmas", sigmas, 0, math.inf, closed="neither")
    if batch.n_samples < 2:
        raise NotDefinedError(f"A PAC-Bayes bound needs at least 2 samples, got {batch.n_samples}.")
    distance = _squared_distance(network, prior)
    draws = _NoisyErrors(network, batch)
    pay = delta * (1 - MONTE_CARLO_SHARE) / len(grid)

    def bound(error: float, sigma: float) -> float:
        return _bound(form, error, distance / (2 * sigma**2), batch.n_samples, pay)

    pilot = max(1, min(PILOT_DRAWS, n_draws // 10))
    with tqdm(total=pilot * len(grid) + n_draws, desc="PAC-Bayes", disable=not batch.verbose, leave=False) as bar:
        sigma = min(grid, key=lambda s: bound(float(draws.errors(s, pilot, bar).mean()), s))
        errors, limit = draws.limited(sigma, _looks(n_draws, tolerance), delta * MONTE_CARLO_SHARE, tolerance, bar)
    info = {"sigma": sigma, "error": float(errors.mean()), "error_limit": limit}
    return Measured(bound(limit, sigma), info={**info, "kl": distance / (2 * sigma**2), "draws": len(errors)})


def _looks(n_draws: int, tolerance: float | None) -> list[int]:
    """After how many draws the limit is looked at: at the end, and with a tolerance after halves of that.

    Examples
    --------
    >>> _looks(1000, 0.05)
    [62, 125, 250, 500, 1000]
    """
    looks = [n_draws]
    while tolerance is not None and looks[0] // 2 >= FEWEST_DRAWS:
        looks.insert(0, looks[0] // 2)
    return looks


def _check_noise(noise: str) -> None:
    if not (isinstance(noise, str) and noise == "spherical"):
        raise ValueError(
            f"`noise` must be 'spherical' in a PAC-Bayes bound, got {shown(noise)}. The scale of magnitude noise, and "
            "with it the prior, depends on the learned weights, but a prior must not depend on the data. Use "
            "`kl_divergence` and `expected_sharpness` to describe magnitude noise."
        )


def _squared_distance(network: Network, prior: str) -> float:
    """Squared distance of the weights from the prior mean, after a check that they include all that was learned."""
    vector = parameter_vector(network)
    if prior == "initial" and network.initial_state is None:
        raise NotDefinedError(
            "`prior='initial'` needs the weights before training: pass the untrained module or its state dict as "
            "`initial_state`, or use prior='zero'."
        )
    check_learned_parts(network, prior)
    start = vector.initial() if prior == "initial" else [torch.zeros((), device=network.device)] * len(vector.tensors)
    pairs = zip(vector.tensors, start, strict=True)
    return math.fsum(float((w.detach().double() - w_0.double()).square().sum()) for w, w_0 in pairs)


class _NoisyErrors:
    """Error rates of a network under spherical noise; every call uses new draws."""

    def __init__(self, network: Network, batch: Batch):
        vector = parameter_vector(network)
        self.batch = batch
        self.theta = FlatParameters(vector.tensors)
        self.forward = vector.bind(self.theta.views)
        self.generator = batch.generator()

    def errors(self, sigma: float, n_draws: int, bar: tqdm) -> Tensor:
        errors = []
        for _ in displacements(self.theta, sigma, n_draws, self.generator):
            errors.append(mean_error(self.batch, self.forward))
            bar.update()
        return torch.stack(errors).cpu()  # (n_draws,)

    def limited(
        self, sigma: float, looks: Sequence[int], delta: float, tolerance: float | None, bar: tqdm
    ) -> tuple[Tensor, float]:
        """Error rates (n,) and an upper limit of their expectation, at the first look where it is close enough.

        A union bound over the looks makes it valid, whichever of them ends the draws.
        """
        errors = torch.empty(0, device="cpu")
        limit = 1.0
        for look in looks:
            errors = torch.cat([errors, self.errors(sigma, look - len(errors), bar)])  # (look,)
            limit = upper_limit(errors, delta / len(looks))
            if tolerance is not None and limit - float(errors.mean()) <= tolerance:
                break
        return errors, limit


def _bound(form: str, error: float, kl: float, m: int, delta: float) -> float:
    """[EG] eq. 6, eq. 5 or the inverse of the binary kl."""
    if form == "sqrt":
        return error + 4 * math.sqrt((kl + math.log(2 * m / delta)) / m)
    if form == "implicit":
        k = 2 * (kl + math.log(2 * m / delta)) / (m - 1)
        return error + math.sqrt(error * k) + k
    return kl_inverse(error, (kl + math.log(2 * math.sqrt(m) / delta)) / m)


def _limits(network: Network, batch: Batch, *, n_draws: int, sigmas: Sequence[float], **params: Any) -> Parts:
    return {UNSHARED: len(sigmas) * max(1, min(PILOT_DRAWS, n_draws // 10)) + n_draws}


MEASURES = (
    Measure(
        "kl_divergence",
        kl_divergence,
        family="pac_bayes",
        lower_is_better=True,
        source="[EG] eq. 8",
        needs=frozenset({"weights"}),
        unit="nats",
        memory=Peak(layers=4),
        limits=NO_PASSES,
        invariances=frozenset({"permutation"}),
    ),
    Measure(
        "pac_bayes_bound",
        pac_bayes_bound,
        family="pac_bayes",
        lower_is_better=True,
        source="[EG] eqs. 5-8",
        needs=frozenset({"data", "labels"}),
        cost="draws",
        passes=(1.2, "n_draws"),
        unit="error rate",
        tasks=("classification",),
        invariances=frozenset({"permutation"}),
        stochastic=True,
        memory=Peak(vectors=2.5, layers=3, passes=2),
        limits=_limits,
    ),
)
