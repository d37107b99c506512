"""The bundled demo: a small real LLaVA that hallucinates, and held-out scenes to measure it on.

Images and model are read on use, not on import. `regaze.demo.training` made both; see
``docs/guide/demo-model.md``.
"""

from __future__ import annotations

from regaze.demo.shipped import FITTING_FILE, IMAGE_DIR, MODEL_DIR, Scene, SceneObject, questions_file, scenes

__all__ = ["FITTING_FILE", "IMAGE_DIR", "MODEL_DIR", "Scene", "SceneObject", "questions_file", "scenes"]
