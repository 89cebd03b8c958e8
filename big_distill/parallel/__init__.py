"""Several devices and several processes: where arrays live, and what processes tell each other."""
