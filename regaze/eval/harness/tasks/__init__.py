"""Tasks for lmms-eval: `lmms-eval --include_path FOLDER --tasks repope,dash_b`, with any of its models.

The YAML files here are the tasks, and the modules hold the functions that they name. Scores are those of
`regaze.eval.benchmarks`.
"""
