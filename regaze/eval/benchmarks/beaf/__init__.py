"""BEAF: the same questions on photographs and on copies with an object painted out."""
