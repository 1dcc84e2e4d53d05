"""Statistics on mergeable counts that stay valid however often one looks: pure functions, no I/O.

Names are loaded on first use: the gateway needs the histogram alone, not numpy and scipy with their 50 MB.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from headway.stats.histogram import GAMMA, log_histogram_bin, log_histogram_bins

if TYPE_CHECKING:
    from headway.stats.adjustment import AdjustedDifference, CovariateSums, cuped_adjustment
    from headway.stats.allocation import sample_ratio_log_e
    from headway.stats.betting import betting_log_e, betting_log_factors
    from headway.stats.counts import log_mean_exp
    from headway.stats.detector import change_detector, detector_step
    from headway.stats.events import (
        RatioInterval,
        event_floor_log_e,
        event_ratio_confidence_sequence,
        event_ratio_log_e,
        event_ratio_log_factors,
    )
    from headway.stats.mixture import (
        ConfidenceSequence,
        confidence_sequence,
        information_to_decide,
        normal_mixture_boundary,
        normal_mixture_log_e,
    )
    from headway.stats.quantiles import RankBounds, quantile_rank_bounds
    from headway.stats.ratio import RatioEstimate, RatioStatistics, ratio_variance
    from headway.stats.strata import (
        Contrast,
        StratifiedEstimate,
        clustered_contrast,
        ratio_contrast,
        stratified_confidence_sequence,
    )
    from headway.stats.two_sample import (
        NullPoint,
        reverse_information_projection,
        two_sample_log_e,
        two_sample_log_factors,
    )

_MODULES = {
    "adjustment": ("AdjustedDifference", "CovariateSums", "cuped_adjustment"),
    "allocation": ("sample_ratio_log_e",),
    "betting": ("betting_log_e", "betting_log_factors"),
    "counts": ("log_mean_exp",),
    "detector": ("change_detector", "detector_step"),
    "events": (
        "RatioInterval",
        "event_floor_log_e",
        "event_ratio_confidence_sequence",
        "event_ratio_log_e",
        "event_ratio_log_factors",
    ),
    "mixture": (
        "ConfidenceSequence",
        "confidence_sequence",
        "information_to_decide",
        "normal_mixture_boundary",
        "normal_mixture_log_e",
    ),
    "quantiles": ("RankBounds", "quantile_rank_bounds"),
    "ratio": ("RatioEstimate", "RatioStatistics", "ratio_variance"),
    "strata": (
        "Contrast",
        "StratifiedEstimate",
        "clustered_contrast",
        "ratio_contrast",
        "stratified_confidence_sequence",
    ),
    "two_sample": ("NullPoint", "reverse_information_projection", "two_sample_log_e", "two_sample_log_factors"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "GAMMA",
    "AdjustedDifference",
    "ConfidenceSequence",
    "Contrast",
    "CovariateSums",
    "NullPoint",
    "RankBounds",
    "RatioEstimate",
    "RatioInterval",
    "RatioStatistics",
    "StratifiedEstimate",
    "betting_log_e",
    "betting_log_factors",
    "change_detector",
    "clustered_contrast",
    "confidence_sequence",
    "cuped_adjustment",
    "detector_step",
    "event_floor_log_e",
    "event_ratio_confidence_sequence",
    "event_ratio_log_e",
    "event_ratio_log_factors",
    "information_to_decide",
    "log_histogram_bin",
    "log_histogram_bins",
    "log_mean_exp",
    "normal_mixture_boundary",
    "normal_mixture_log_e",
    "quantile_rank_bounds",
    "ratio_contrast",
    "ratio_variance",
    "reverse_information_projection",
    "sample_ratio_log_e",
    "stratified_confidence_sequence",
    "two_sample_log_e",
    "two_sample_log_factors",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its module on first use."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *__all__})
