"""Diffusion models: noise schedules, networks, text and latents, their training, and sampling."""
