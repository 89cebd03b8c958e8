"""Sets runs up, trains them in the one loop, evaluates them, and stops and resumes them."""
