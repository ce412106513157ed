"""The linear datamodeling score: outputs of models retrained on random subsets, predicted by attributions."""
