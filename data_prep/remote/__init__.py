"""Public archives over HTTP."""
