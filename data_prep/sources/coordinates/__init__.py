"""Structure formats, from bytes to chains."""
