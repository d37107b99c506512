"""ROPE: several marked objects of one picture, each to be named."""
