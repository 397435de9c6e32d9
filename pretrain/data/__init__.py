"""From a position to a batch: index, plan, loader, collate."""
