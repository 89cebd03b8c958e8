"""Builds the train step and the evaluation step, and the pure functions that they are made of."""
