"""Writes files whole or not at all, and verifies the checksums of a directory; all that touches a disk uses it."""
