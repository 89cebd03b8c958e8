"""The page about runs: what is read, compared, drawn and written."""
