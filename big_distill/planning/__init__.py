"""Planning: what a run takes on a machine that is not there."""
