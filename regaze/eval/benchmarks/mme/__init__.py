"""MME: two yes/no questions per image in fourteen tasks."""
