"""Emergence: at which step of a journey what its final image shows is decided."""
