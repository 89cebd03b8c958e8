"""Files that are whole or not there, and the checksums of a directory: the bottom of everything that touches a disk."""
