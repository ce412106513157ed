"""Retraining counterfactuals: what a method ranks first is left out, a model is retrained, and its journeys are compared."""
