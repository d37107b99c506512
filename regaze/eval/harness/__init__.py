"""regaze as a model of evaluation harnesses: lm-evaluation-harness and lmms-eval, and tasks for them.

`lm_eval --model regaze` and `lmms_eval --model regaze` run their own tasks, prompts and scores, while the
model's forwards run under a method of regaze. Only the harnesses import these modules.
"""

from pathlib import Path

#: Folder of the tasks for lmms-eval's `--include_path`.
LMMS_EVAL_TASKS = Path(__file__).resolve().parent / "tasks"
