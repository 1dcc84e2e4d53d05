"""Faces: parse, call, render; no decisions."""
