"""What descriptions are made of, and the two that write them."""
