"""Artifacts: their specs and cache keys, the store that holds them, and how they are computed."""
