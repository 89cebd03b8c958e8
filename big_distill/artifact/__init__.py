"""What a finished student is shipped as."""
