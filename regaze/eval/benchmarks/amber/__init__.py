"""AMBER: descriptions and yes/no questions on annotated photographs."""
