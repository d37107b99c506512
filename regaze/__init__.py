"""regaze: see, edit and measure the attention of multimodal language models while they generate.

model, processor = regaze.load("demo")
gaze = regaze.wrap(model, processor)
with gaze.using(regaze.VAR()):
    model.generate(**gaze.inputs(image, "Is there a dog in the image?"))

Names are imported when first used; `__init__.pyi` lists them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
