"""What a forward of several contexts, or under changed logits, hands back to `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regaze.errors import InputError
from regaze.toolkit.model.callback import Callback
from regaze.toolkit.model.context import Context
from regaze.toolkit.model.logits import combine
from regaze.toolkit.model.stack import crop_columns, main_rows

BY_NAME = "an intervention that changes the logits of a forward needs outputs by name: return_dict=True"
_LOSS = "the loss of `labels` is that of the model without the intervention; take it from the logits instead"


def combined_output(output: Any, context: Context, callbacks: Sequence[Callback], guided: bool) -> Any:
    """The output with the combined logits of the user's rows; None where it stays as it is.

    Args:
        callbacks: those with `combine_logits`. guided: `generate` runs with guidance_scale.

    Raises:
        InputError: the output is a tuple, or has a loss; or logits that are cut meet guidance_scale.
    """
    if isinstance(output, tuple):
        raise InputError(BY_NAME)
    with context.reading_logits(output):
        given = [callback.combine_logits(context) for callback in callbacks]
        combinations = [combination for combination in given if combination is not None]
        if not combinations and not context.has_branches:
            return None
        if combinations and output.get("loss") is not None:
            raise InputError(_LOSS)
        # transformers' guidance takes differences of logits, in which a cut leaves inf and nan.
        if guided and any(combination.cuts for combination in combinations):
            raise InputError(
                "guidance_scale of generate does not go with a method that excludes implausible tokens: "
                "generate without guidance_scale, or with the method's cut off (beta=0)"
            )
        logits = combine(context.logits(), combinations) if combinations else context.logits()
    for name in list(output):
        output[name] = main_rows(output[name], context.batch, context.user_batch)
    if context.hidden_columns:
        crop_columns(output, context.hidden_columns, context.step == 0)
    output["logits"] = logits
    return output
