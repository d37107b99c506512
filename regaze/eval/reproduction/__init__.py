"""Reproductions of published figures: recipes, checks without weights, verdicts, and the ledger of runs."""
