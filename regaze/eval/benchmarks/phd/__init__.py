"""PhD: yes/no questions of five tasks, with misleading contexts and made pictures."""
