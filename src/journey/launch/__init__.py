"""Launchers: where and in which order artifacts are computed."""
