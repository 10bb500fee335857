"""What each part of a sum costs, from measurements of the sum."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["fit", "worst"]

ROUNDS = 20_000

Row = tuple[Sequence[float], float]
"""How often each part is in a sum, and the sum."""


def fit(rows: Sequence[Row]) -> list[float]:
    """Find what each part costs, none less than nothing, so that the sums are met as
    well as can be: by the least squares of the relative errors.

    One part after another takes what suits it best beside the others, until they rest.
    """
    scaled = [([count / total for count in counts], 1.0) for counts, total in rows]
    parts = range(len(scaled[0][0]))
    squares = [sum(counts[part] ** 2 for counts, _ in scaled) for part in parts]
    costs = [0.0 for _ in parts]
    left = [total for _, total in scaled]
    for _ in range(ROUNDS):
        for part in parts:
            if not squares[part]:
                continue
            step = sum(
                c[part] * rest for (c, _), rest in zip(scaled, left, strict=True)
            )
            step = max(step / squares[part], -costs[part])
            costs[part] += step
            for number, (counts, _) in enumerate(scaled):
                left[number] -= step * counts[part]
    return costs


def worst(rows: Sequence[Row], costs: Sequence[float]) -> float:
    """The largest relative error of a sum."""
    return max(
        abs(sum(c * n for c, n in zip(costs, counts, strict=True)) / total - 1)
        for counts, total in rows
    )
