"""CRPE: objects, and relations between them, as multiple choice in four rotations."""
