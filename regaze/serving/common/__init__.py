"""What several processes need: what requests carry, how prompts are read, what runs in which vLLM."""
