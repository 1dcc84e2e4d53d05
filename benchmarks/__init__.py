"""Headway's benchmarks: what the gateway costs, measured against bare Envoy in the same run (``make bench``)."""
