"""Localization: outputs and attributions of regions of an image."""
