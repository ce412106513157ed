"""Evaluations: a file for each kind, and their mathematics. Nothing here trains."""
