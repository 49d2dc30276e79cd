"""What people do with a generator; `python -m pipeline.generate --help` lists it."""
