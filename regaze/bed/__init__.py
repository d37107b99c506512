"""A test bed with a real language model: SmolLM2 taught to look at the demo's scenes, and to hallucinate."""
