"""Interventions: a file per method, only what makes that method itself."""

from regaze.interventions.adhh.method import ADHH
from regaze.interventions.agla.method import AGLA
from regaze.interventions.avisc import AvisC
from regaze.interventions.base import Intervention, Method, MultiPassMethod
from regaze.interventions.carve.method import CARVE
from regaze.interventions.damro import DAMRO
from regaze.interventions.dola import DoLa
from regaze.interventions.evit.method import EViT
from regaze.interventions.gift.method import GIFT
from regaze.interventions.hgai import HGAI
from regaze.interventions.icd import ICD
from regaze.interventions.knockout import HeadKnockout
from regaze.interventions.m3id import M3ID
from regaze.interventions.mma.method import MMA
from regaze.interventions.moa.method import MoA
from regaze.interventions.opera.method import OPERA
from regaze.interventions.pai import PAI
from regaze.interventions.paint.method import PAINT
from regaze.interventions.registry import BUILT_IN, create, from_dict, methods
from regaze.interventions.sparc import SPARC
from regaze.interventions.vaf import VAF
from regaze.interventions.var import VAR
from regaze.interventions.vcd.method import VCD
from regaze.interventions.vista import VISTA

__all__ = [
    "ADHH",
    "AGLA",
    "BUILT_IN",
    "CARVE",
    "DAMRO",
    "GIFT",
    "HGAI",
    "ICD",
    "M3ID",
    "MMA",
    "OPERA",
    "PAI",
    "PAINT",
    "SPARC",
    "VAF",
    "VAR",
    "VCD",
    "VISTA",
    "AvisC",
    "DoLa",
    "EViT",
    "HeadKnockout",
    "Intervention",
    "Method",
    "MoA",
    "MultiPassMethod",
    "create",
    "from_dict",
    "methods",
]
