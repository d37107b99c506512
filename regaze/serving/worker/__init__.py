"""Where the model runs: edits of the rows of a forward in its layers, and of their logits."""
