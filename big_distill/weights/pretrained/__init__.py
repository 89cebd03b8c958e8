"""Weights from elsewhere, fetched and read as flat dicts of NumPy arrays."""
