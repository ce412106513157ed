"""Datasets, one file for each source. All of them load the same `ImageSet`."""
