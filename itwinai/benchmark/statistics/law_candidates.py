"""The laws that the time of a step may follow, as far as theory knows them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from itwinai.benchmark.records import Scaling
from itwinai.benchmark.statistics.estimates import Estimate
from itwinai.benchmark.telling.amounts import percent_text, time_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

PARAMETERS: Mapping[str, str] = {
    "work": "seconds of a step with one worker",
    "one_worker": "seconds of a step with one worker",
    "serial_share": "share of a step with one worker that more workers do not shorten",
    "latency": "seconds that each further worker adds to a step",
    "transfer": "seconds in which a worker sends the volume of all gradients once",
    "gustafson_serial_share": "share of a step that is serial by Gustafson's law",
}
"""What the parameters of all laws mean, with their units."""

_DIVIDED, _CONSTANT, _PER_WORKER, _RING = range(4)


def terms(workers: Sequence[int] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what the time of a step is a sum of: ``1/N``, ``1``, ``N - 1`` and ``2 (N - 1) / N``.

    The last two are the all-reduce of a ring, in which each of N workers sends 2 (N - 1) messages of one N-th of the
    gradients: their latency grows with N, their volume hardly (Patarasuk and Yuan, "Bandwidth optimal all-reduce
    algorithms for clusters of workstations", Journal of Parallel and Distributed Computing 2009).

    Args:
        workers: the numbers N.

    Returns:
        An array of shape ``(len(workers), 4)``.
    """
    number = np.asarray(workers, dtype=float)
    return np.stack([1 / number, np.ones_like(number), number - 1, 2 * (number - 1) / number], axis=-1)


@dataclass(frozen=True)
class Candidate:
    """A law.

    Attributes:
        name: as people call it.
        formula: of the seconds t of a step by the number N of workers.
        terms: columns of `terms` that it has; first the one that there is no step without.
        parameters: values of its parameters, see `PARAMETERS`, from the factors of all terms along the last axis.
        words: what it says, given its parameters.
    """

    name: str
    formula: str
    terms: tuple[int, ...]
    parameters: Callable[[NDArray[np.float64]], dict[str, NDArray[np.float64]]]
    words: Callable[[Mapping[str, Estimate]], str]


def candidates(scaling: Scaling, counts: int) -> list[Candidate]:
    """Return the laws that have fewer parameters than there are numbers of workers, the simplest first.

    With strong scaling there is no law that has both serial work and the volume of a ring: they grow alike with the
    number of workers, ``2 (N - 1) / N = 2 - 2 / N``, so that no measurement tells them apart.

    Args:
        scaling: how the batch goes with the number of workers.
        counts: how many numbers of workers were measured.
    """
    return [law for law in (_STRONG if scaling == "strong" else _WEAK) if len(law.terms) < counts]


def gustafson(workers: Sequence[int], factors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the serial share s of Gustafson's law, ``S(N) = N - s (N - 1)``, that is nearest to a law of weak scaling.

    S is the scaled speed-up, N times the time of one worker by that of N (Gustafson, "Reevaluating Amdahl's Law",
    Communications of the ACM 1988).

    Args:
        workers: numbers of workers at which it shall be near, by least squares.
        factors: of all terms, along the last axis.
    """
    number = np.asarray(workers, dtype=float)
    speedup = number * (factors @ terms([1]).T) / (factors @ terms(workers).T)
    lost: NDArray[np.float64] = ((number - speedup) * (number - 1)).sum(axis=-1) / ((number - 1) ** 2).sum()
    return lost


def _named(**columns: int) -> Callable[[NDArray[np.float64]], dict[str, NDArray[np.float64]]]:
    return lambda factors: {name: factors[..., column] for name, column in columns.items()}


def _amdahl(factors: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    one_worker = factors[..., _DIVIDED] + factors[..., _CONSTANT]
    return {"one_worker": one_worker, "serial_share": factors[..., _CONSTANT] / one_worker}


def _amdahl_words(parameters: Mapping[str, Estimate]) -> str:
    return (
        f"{percent_text(parameters['serial_share'])} of the step of one worker do not become shorter with more: "
        "work that is not divided, or gradients on their way, which strong scaling cannot tell apart."
    )


def _transfer_words(parameters: Mapping[str, Estimate]) -> str:
    return f"What workers send each other takes up to {time_text(parameters['transfer'].times(2))} of a step."


def _latency_words(parameters: Mapping[str, Estimate]) -> str:
    return f"Each further worker adds {time_text(parameters['latency'])} to a step, as the latency of a ring does."


def _ring_words(parameters: Mapping[str, Estimate]) -> str:
    return f"{_transfer_words(parameters)} {_latency_words(parameters)}"


_STRONG = (
    Candidate(
        "ideal scaling",
        "t = work / N",
        (_DIVIDED,),
        _named(work=_DIVIDED),
        lambda _: "The work is divided among the workers, and nothing that it costs stands out from the noise.",
    ),
    Candidate(
        "Amdahl's law",
        "t = one_worker (serial_share + (1 - serial_share) / N)",
        (_DIVIDED, _CONSTANT),
        _amdahl,
        _amdahl_words,
    ),
    Candidate(
        "latency",
        "t = work / N + latency (N - 1)",
        (_DIVIDED, _PER_WORKER),
        _named(work=_DIVIDED, latency=_PER_WORKER),
        _latency_words,
    ),
    Candidate(
        "ring all-reduce",
        "t = work / N + latency (N - 1) + transfer 2 (N - 1) / N",
        (_DIVIDED, _PER_WORKER, _RING),
        _named(work=_DIVIDED, latency=_PER_WORKER, transfer=_RING),
        _ring_words,
    ),
)

_WEAK = (
    Candidate(
        "ideal scaling",
        "t = work",
        (_CONSTANT,),
        _named(work=_CONSTANT),
        lambda _: "A step takes equally long with any number of workers, as far as the noise lets one see.",
    ),
    Candidate(
        "transfer",
        "t = work + transfer 2 (N - 1) / N",
        (_CONSTANT, _RING),
        _named(work=_CONSTANT, transfer=_RING),
        _transfer_words,
    ),
    Candidate(
        "latency",
        "t = work + latency (N - 1)",
        (_CONSTANT, _PER_WORKER),
        _named(work=_CONSTANT, latency=_PER_WORKER),
        _latency_words,
    ),
    Candidate(
        "ring all-reduce",
        "t = work + latency (N - 1) + transfer 2 (N - 1) / N",
        (_CONSTANT, _PER_WORKER, _RING),
        _named(work=_CONSTANT, latency=_PER_WORKER, transfer=_RING),
        _ring_words,
    ),
)
