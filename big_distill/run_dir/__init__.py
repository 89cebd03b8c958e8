"""Keeps a run directory: its files and its lock, its checkpoints and metrics, and the machines that wrote them."""
