"""Training: the one loop, how a run is set up, how it is evaluated, and how it stops and resumes."""
