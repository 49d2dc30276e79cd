"""Network pickles of the official code, as data: theirs to ours, without running any of it."""
