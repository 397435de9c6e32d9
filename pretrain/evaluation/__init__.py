"""What a trained model is worth, and how it is shown."""
