"""regaze as a model of the evaluation harnesses in use: lm-evaluation-harness and lmms-eval.

`lm_eval --model regaze` and `lmms_eval --model regaze` run their own tasks, prompts and scores; regaze's part
is that the model's forwards run under a method. Nothing here is imported unless a harness asks for it.
"""
