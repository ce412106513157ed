"""Planted images: copies of the queries in the training set, a test whose answer is known."""
