"""Controls: trivial stand-ins for a method, which it has to beat before its idea gets the credit.

Some are the same for every method: a prompt that prefers Yes, shorter texts. Others a method names itself,
with `Method.controls`: its plausibility cut alone, random heads for its heads, a random direction for its
direction, uniform columns for its choice of columns, random objects and boxes for those of its detector.
Like methods they are frozen dataclasses, and run as these do; `regaze compare --controls` adds them.
"""

from regaze.interventions.controls.base import Control, Variant
from regaze.interventions.controls.drop_last_sentence import DropLastSentence
from regaze.interventions.controls.near_tie import NearTie
from regaze.interventions.controls.plausibility_cut import PlausibilityCut
from regaze.interventions.controls.prefer_yes import PreferYes
from regaze.interventions.controls.random_detections import RandomBoxes, RandomObjects
from regaze.interventions.controls.random_direction import RandomDirection
from regaze.interventions.controls.random_heads import RandomHeads
from regaze.interventions.controls.random_source import RandomSource
from regaze.interventions.controls.random_tokens import RandomTokens
from regaze.interventions.controls.sharpen import Sharpen
from regaze.interventions.controls.stop_after import StopAfter
from regaze.interventions.controls.uniform_columns import UniformColumns
from regaze.interventions.controls.uniform_sink import UniformSink
from regaze.interventions.controls.yes_offset import YesOffset

__all__ = [
    "Control",
    "DropLastSentence",
    "NearTie",
    "PlausibilityCut",
    "PreferYes",
    "RandomBoxes",
    "RandomDirection",
    "RandomHeads",
    "RandomObjects",
    "RandomSource",
    "RandomTokens",
    "Sharpen",
    "StopAfter",
    "UniformColumns",
    "UniformSink",
    "Variant",
    "YesOffset",
]
