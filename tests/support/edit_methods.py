"""Methods that edit attention or combine logits of contexts, so that they act on tiny models."""

from __future__ import annotations

from models import small_var

from regaze import HeadKnockout
from regaze.interventions import (
    ADHH,
    EAH,
    FLB,
    GIFT,
    HGAI,
    MMA,
    PAI,
    PAINT,
    RITUAL,
    SID,
    SPARC,
    SPIN,
    VAF,
    VCD,
    VHR,
    CausalMM,
    MoA,
)

KNOCK = HeadKnockout(heads=((1, 1), (0, 2)))
METHODS = {
    "var": small_var(),
    "gift": GIFT(),
    "pai": PAI(),
    "vaf": VAF(enhance=1.5),
    "hgai": HGAI(alpha=1.0),
    "adhh": ADHH(heads=((0, 0), (1, 3), (4, 2)), threshold=0.1),
    "moa": MoA(beta=0.2, block=8),
    "mma": MMA(trained=True),
    "paint": PAINT(),
    "sparc": SPARC(alpha=1.5, tau=0.1),
    "knockout": KNOCK,
    "vcd": VCD(alpha=0.5, noise_step=300),
    "ritual": RITUAL(alpha=1.0),
    "sid": SID(kept=5),
    "spin": SPIN(kept=0.5),
    "eah": EAH(),
    "vhr": VHR(),
    "causalmm": CausalMM(attention="random"),
    "flb": FLB(gamma=2.0, decay=0.5),
}
