"""Object HalBench: objects in answers that are not in the image, as shares of answers and of mentions."""
