"""`make demo`: what `dev/demo` does, step by step."""
