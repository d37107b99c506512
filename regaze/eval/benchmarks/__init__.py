"""One benchmark per file; what a runner needs of one is in `base`."""
