"""Parts that several models share, ragged throughout."""
