"""VideoHallucer: pairs of yes/no questions about videos."""
