"""Simulated rollouts: known releases meet the real assignment, evidence, books and decisions; only the database is not.

What it measures is the promise: how often a good candidate is rolled back, how often a bad one reaches all traffic.
"""
