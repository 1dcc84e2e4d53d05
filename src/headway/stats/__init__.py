"""Statistics on mergeable counts: pure functions, no I/O."""

from headway.stats.histogram import GAMMA, log_histogram_bin, log_histogram_bins

__all__ = ["GAMMA", "log_histogram_bin", "log_histogram_bins"]
