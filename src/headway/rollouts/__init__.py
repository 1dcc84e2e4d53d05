"""Rollouts: how an application gets from its stable release to a candidate."""
