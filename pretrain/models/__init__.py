"""One file per model: features in, losses out."""
