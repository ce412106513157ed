"""Evaluations: a room for each kind, and beside them the mathematics that several share. Nothing here trains."""
