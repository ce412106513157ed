"""Launchers: how many artifacts are made, a file for each kind. All use `jobs` and `progress`; `local` alone uses `pool`."""
