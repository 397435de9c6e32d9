"""One file per source: bytes in, records out."""
