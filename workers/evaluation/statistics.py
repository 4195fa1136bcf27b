"""Intervals and tests for shares and for paired differences of shares.

Source: E. B. Wilson (1927) for one share; R. G. Newcombe, "Improved confidence intervals for the difference between
    binomial proportions based on paired data", Statistics in Medicine 17 (1998) 2635-2650, method 10; Q. McNemar
    (1947), in its exact form.
Idea: the same prompts are put to two models, so that prompts on which both do the same say nothing about a change.
Differences: none known; the correlation of method 10 is the continuity-corrected one, as in the paper.
"""

from collections.abc import Sequence
from math import comb, sqrt
from statistics import NormalDist

from app.contracts.evaluation import PairedDifference, Rate

CONFIDENCE = 0.95
Z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
"""1.959964: the normal quantile of a two-sided 95 % interval."""


def wilson(hits: int, num_scored: int, z: float = Z) -> Rate:
    """A share with its Wilson score interval.

    Raises:
        ValueError: nothing was scored (a share of nothing does not exist), or `hits` is no count out of `num_scored`.
    """
    if num_scored <= 0:
        raise ValueError("a rate over nothing does not exist: no prompt was scored")
    if not 0 <= hits <= num_scored:
        raise ValueError(f"{hits} hits of {num_scored} scored is not a share")
    share = hits / num_scored
    centre = (share + z * z / (2 * num_scored)) / (1 + z * z / num_scored)
    half = z * sqrt(share * (1 - share) / num_scored + z * z / (4 * num_scored * num_scored)) / (1 + z * z / num_scored)
    # At 0 and at n one limit equals the share exactly; rounding would leave it a hair on the wrong side.
    low = 0.0 if hits == 0 else max(0.0, centre - half)
    high = 1.0 if hits == num_scored else min(1.0, centre + half)
    return Rate(hits=hits, num_scored=num_scored, value=share, low=low, high=high)


def rate_or_none(hits: int, num_scored: int) -> Rate | None:
    """`wilson`, or None where nothing was scored."""
    return wilson(hits, num_scored) if num_scored else None


def mcnemar_p(only_base: int, only_tuned: int) -> float:
    """Two-sided p value of the exact McNemar test: a fair coin for each pair that changed."""
    changed = only_base + only_tuned
    if changed == 0:
        return 1.0
    tail = sum(comb(changed, k) for k in range(min(only_base, only_tuned) + 1))
    # Integers throughout: 2**changed overflows a float from 1024 changed pairs on.
    total: int = 2**changed
    return min(1.0, 2 * tail / total)


def paired_difference(base_hits: Sequence[bool], tuned_hits: Sequence[bool], z: float = Z) -> PairedDifference:
    """Share of hits, tuned minus base, over prompts that both models were scored on.

    Args:
        base_hits: For each prompt, whether the base hit.
        tuned_hits: The same prompts in the same order.
        z: Normal quantile of the interval.

    Raises:
        ValueError: the two are not equally long, or empty.
    """
    if len(base_hits) != len(tuned_hits):
        raise ValueError(f"pairs need equal lengths, got {len(base_hits)} and {len(tuned_hits)}")
    if not base_hits:
        raise ValueError("a difference over no pairs does not exist: no prompt was scored for both models")
    pairs = list(zip(base_hits, tuned_hits, strict=True))
    return paired_difference_of_counts(
        both=sum(b and t for b, t in pairs),
        only_tuned=sum(t and not b for b, t in pairs),
        only_base=sum(b and not t for b, t in pairs),
        neither=sum(not b and not t for b, t in pairs),
        z=z,
    )


def paired_difference_of_counts(
    *, both: int, only_tuned: int, only_base: int, neither: int, z: float = Z
) -> PairedDifference:
    """The same from the four counts of the paired table."""
    num_pairs = both + only_tuned + only_base + neither
    tuned = wilson(both + only_tuned, num_pairs, z)
    base = wilson(both + only_base, num_pairs, z)
    phi = _correlation(both, only_tuned, only_base, neither)
    value = (only_tuned - only_base) / num_pairs
    below = _combined(tuned.value - tuned.low, base.high - base.value, phi)
    above = _combined(tuned.high - tuned.value, base.value - base.low, phi)
    return PairedDifference(
        value=value,
        low=max(-1.0, value - below),
        high=min(1.0, value + above),
        num_pairs=num_pairs,
        only_base=only_base,
        only_tuned=only_tuned,
        p_value=mcnemar_p(only_base, only_tuned),
    )


def smallest_significant_change(alpha: float = 0.05) -> int:
    """How many prompts must change, all in one direction, before the exact McNemar test can fall below `alpha`."""
    changed = 1
    while mcnemar_p(0, changed) >= alpha:
        changed += 1
    return changed


def _correlation(both: int, only_tuned: int, only_base: int, neither: int) -> float:
    """Newcombe's phi: correlation of the two answers, shrunk by half a pair's worth when positive."""
    margins = (both + only_tuned) * (only_base + neither) * (both + only_base) * (only_tuned + neither)
    if margins == 0:
        return 0.0
    product = both * neither - only_tuned * only_base
    num_pairs = both + only_tuned + only_base + neither
    numerator = product if product < 0 else max(product - num_pairs / 2, 0.0)
    return float(numerator / sqrt(margins))


def _combined(left: float, right: float, phi: float) -> float:
    """Length of the sum of two interval arms under correlation `phi`."""
    # Equal arms and phi near 1 leave a difference of rounding errors, which may be just below zero.
    return sqrt(max(0.0, left * left - 2 * phi * left * right + right * right))
