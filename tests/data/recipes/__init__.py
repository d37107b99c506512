"""What the goldens of our own are computed by."""
