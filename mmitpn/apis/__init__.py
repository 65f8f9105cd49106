"""What most users call: prediction, training on their own data."""
