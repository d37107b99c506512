"""Registers `regaze` as a model of lm-eval (0.4.13), which has no entry points for models.

The wheel installs this file next to the package, and `regaze_lm_eval.pth` imports it when Python starts. It
runs in every process, so it imports only what Python has imported already, and only waits for lm-eval's list
of models: after lm-eval has filled the list, the name "regaze" is added with the path of the class, which
lm-eval imports when the name is used. REGAZE_NO_LM_EVAL=1 in the environment switches it off.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # the module typing would cost more than everything else here
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType

WHERE, TARGET = "lm_eval.models", "regaze.eval.harness.lm_eval:RegazeLM"


class _Finder:
    """Finds lm-eval's list of models once, and adds an entry after it is loaded."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != WHERE:
            return None
        sys.meta_path.remove(self)
        from importlib.machinery import PathFinder

        spec = PathFinder.find_spec(name, path)  # type: ignore[arg-type]
        if spec is not None and spec.loader is not None:
            _register_after(spec.loader)
        return spec


def _register_after(loader: object) -> None:
    run = loader.exec_module  # type: ignore[attr-defined]

    def exec_module(module: ModuleType) -> None:
        run(module)
        try:
            from lm_eval.api.registry import model_registry

            if "regaze" not in model_registry:
                model_registry.register("regaze", target=TARGET)
        except Exception as error:  # another release: lm-eval itself must still work
            print(f"regaze: not registered with this lm-eval ({error})", file=sys.stderr)

    loader.exec_module = exec_module  # type: ignore[attr-defined]


if os.environ.get("REGAZE_NO_LM_EVAL", "0") in ("", "0"):
    sys.meta_path.insert(0, _Finder())
