"""How far a quantised network's values are from the exact ones: signal to quantisation noise, in dB."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

MOST = 100.0                                               # dB; equal to the last bit of fp32 and beyond
Taps = Callable[[np.ndarray], dict[str, np.ndarray]]


def sqnr_db(exact: np.ndarray, other: np.ndarray) -> float:
    """10 log10 of the power of `exact` over that of the difference; at most 100."""
    return _db(*_powers(exact, other))


def layers_sqnr(exact: Taps, other: Taps, names: Sequence[str], pictures: Iterable[np.ndarray]) -> list[dict]:
    """A row {"layer", "sqnr_db"} a name, powers added up over pictures uint8 [1, 3, S, S].

    exact, other: from a picture to the values by layer name.
    """
    powers = np.zeros((len(names), 2))
    for picture in pictures:
        a, b = exact(picture), other(picture)
        powers += [_powers(a[name], b[name]) for name in names]
    return [{"layer": name, "sqnr_db": round(_db(*pair), 2)}
            for name, pair in zip(names, powers, strict=True)]


def _powers(exact: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """The sums of squares of the values and of the difference."""
    exact = exact.astype(np.float64)
    return float((exact ** 2).sum()), float(((other - exact) ** 2).sum())


def _db(signal: float, noise: float) -> float:
    if not noise:
        return MOST
    return min(MOST, float(10 * np.log10(max(signal, 1e-300) / noise)))
