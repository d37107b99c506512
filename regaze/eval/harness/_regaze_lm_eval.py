"""Makes `lm_eval --model regaze` find its class, although lm-eval (0.4.13) has no entry points for models.

The wheel installs this file beside the package, and `regaze_lm_eval.pth` imports it when Python starts. That
runs in every process, so it imports nothing that Python has not imported already, and does nothing but watch
for lm-eval's list of models: after lm-eval has filled that, the name "regaze" is added, as a place from which
lm-eval itself imports the class when it is asked for. REGAZE_NO_LM_EVAL=1 in the environment switches it off.
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
    """Finds lm-eval's list of models, once, and adds a line to it."""

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
        except Exception as error:  # a release that keeps its models otherwise; lm-eval must go on working
            print(f"regaze: not registered with this lm-eval ({error})", file=sys.stderr)

    loader.exec_module = exec_module  # type: ignore[attr-defined]


if os.environ.get("REGAZE_NO_LM_EVAL", "0") in ("", "0"):
    sys.meta_path.insert(0, _Finder())
