"""R-Bench: yes/no questions about relations, of whole images and of marked objects."""
