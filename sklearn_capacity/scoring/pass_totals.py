"""How many passes over the data the measures of a call take at most, and about how long."""

from __future__ import annotations

import math
import sys
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from .measurement import Session
from .outcomes import estimated_passes, is_left_out, seconds_per_pass
from .requests import Request

__all__ = ["PassTotal", "announce", "pass_total"]

#: Samples on which a session tries a network, checks its trace, and looks at its sizes and parameters.
SETUP_SAMPLES = 100


@dataclass(frozen=True)
class PassTotal:
    """An upper bound of the passes of a call.

    Attributes
    ----------
    at_most : int
        Passes of all measures that state a limit; see `measures.pass_limits` for what a pass is.
    seconds : float or None
        Their time by that of one forward pass over some samples, if it was measured.
    without_limit : list of str
        Labels of the other measures, such as functions of the user.
    """

    at_most: int
    seconds: float | None
    without_limit: list[str]

    def __str__(self) -> str:
        time = "" if self.seconds is None else f", about {self.seconds:.2g} s by the time of one"
        others = f" Not counted: {', '.join(self.without_limit)}." if self.without_limit else ""
        return f"At most {self.at_most:,} passes of the network over the data{time}.{others}"


def pass_total(session: Session, requests: Sequence[Request], *, group: str | None = None, timed: bool) -> PassTotal:
    """The passes that some requests take together: parts that measures share count once.

    Parameters
    ----------
    session : Session
    requests : sequence of Request
    group : str or None
        "cheap" leaves out measures that are expensive for this network.
    timed : bool
        Whether to measure the time of a forward pass.
    """
    if not session.batch.has_samples:
        return PassTotal(0, None, [])
    parts: dict[Hashable, float] = {}
    without_limit: list[str] = []
    for request in requests:
        if is_left_out(group, estimated_passes(session, request)):
            continue
        most = session.most_passes(request)
        if most is None:
            without_limit.append(request.label)
        else:
            parts |= {part: max(passes, parts.get(part, 0.0)) for part, passes in most.items()}
    total = math.ceil(math.fsum(parts.values()) + SETUP_SAMPLES / session.batch.n_samples)
    return PassTotal(total, total * seconds_per_pass(session) if timed else None, without_limit)


def announce(total: PassTotal) -> None:
    """Write the total to the stream of the progress bars."""
    tqdm.write(str(total), file=sys.stderr)
