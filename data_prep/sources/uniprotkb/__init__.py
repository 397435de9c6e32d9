"""UniProt's entries, in its own formats."""
