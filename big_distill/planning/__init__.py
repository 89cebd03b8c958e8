"""Plans a run: says what it takes on a machine that is not there."""
