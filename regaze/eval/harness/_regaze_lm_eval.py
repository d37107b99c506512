"""Makes `lm_eval --model regaze` find its class, although lm-eval (0.4.13) has no entry points for models.

The wheel installs this file beside the package, and `regaze_lm_eval.pth` imports it when Python starts.
Nothing happens then but this: after lm-eval has registered its own models, the name "regaze" is added, as a
place from which lm-eval itself imports the class when it is asked for. Processes that do not import lm-eval
see nothing.
"""

from __future__ import annotations

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

WHERE, TARGET = "lm_eval.models", "regaze.eval.harness.lm_eval:RegazeLM"


class _Finder(MetaPathFinder):
    """Finds lm-eval's list of models, once, and adds a line to it."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != WHERE:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            _register_after(spec.loader)
        return spec


def _register_after(loader: Loader) -> None:
    run = loader.exec_module

    def exec_module(module: Any) -> None:
        run(module)
        try:
            from lm_eval.api.registry import model_registry

            if "regaze" not in model_registry:
                model_registry.register("regaze", target=TARGET)
        except Exception as error:  # a release that keeps its models otherwise; lm-eval must go on working
            print(f"regaze: not registered with this lm-eval ({error})", file=sys.stderr)

    loader.exec_module = exec_module  # type: ignore[method-assign]


sys.meta_path.insert(0, _Finder())
