"""regaze: see, edit and measure the attention of multimodal language models while they generate.

model, processor = regaze.load("demo")
gaze = regaze.wrap(model, processor)
with gaze.using(regaze.VAR()):
    model.generate(**gaze.inputs(image, "Is there a dog in the image?"))
"""

from regaze.errors import RegazeError
from regaze.interventions import VAR, HeadKnockout, Intervention
from regaze.toolkit import Gaze, Record, Role, TokenMap, load, wrap
from regaze.version import __version__

__all__ = [
    "VAR",
    "Gaze",
    "HeadKnockout",
    "Intervention",
    "Record",
    "RegazeError",
    "Role",
    "TokenMap",
    "__version__",
    "load",
    "wrap",
]
