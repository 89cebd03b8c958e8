"""Fetches weights of other projects, and reads them as flat dicts of NumPy arrays."""
