"""Reads, examines, compares and draws runs, and writes the page about them."""
