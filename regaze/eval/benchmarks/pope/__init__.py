"""POPE: is there an object in the image, yes or no."""
