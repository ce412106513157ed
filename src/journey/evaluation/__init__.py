"""Evaluations: one package each, and the statistics, tables and plots they share. No training."""
