"""Tuning apart from testing: parameters are chosen on some images, and figures reported of others."""
