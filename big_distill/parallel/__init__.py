"""Runs on several devices and processes: makes the mesh, places arrays on it, and shares values among processes."""
