"""Mitigations of the loss of plasticity, which can be combined and attached to any algorithm."""

from sb3_plasticity.mitigations.architecture import CReLU, FourierFeatures, LayerNormReLU, LayerNormTanh
from sb3_plasticity.mitigations.attachment import Attachment, attached, attachments_of, mitigate
from sb3_plasticity.mitigations.base import Agent, Mitigation
from sb3_plasticity.mitigations.callback import MitigationCallback
from sb3_plasticity.mitigations.churn import ChurnReduction
from sb3_plasticity.mitigations.effective_rank import EffectiveRank, RankAscent
from sb3_plasticity.mitigations.injection import PlasticityInjection
from sb3_plasticity.mitigations.optimizers import TRAC, UPGD, MuonAdam
from sb3_plasticity.mitigations.penalties import (
    L2,
    FeatureNorm,
    L2Init,
    Parseval,
    RegenerativeWasserstein,
    SpectralRegularization,
)
from sb3_plasticity.mitigations.projections import (
    NormalizeAndProject,
    SelectiveWeightReinit,
    ShrinkAndPerturb,
    WeightClipping,
)
from sb3_plasticity.mitigations.recycling import (
    CalibratedPartialResets,
    ContinualBackprop,
    ReDo,
    ReGraMa,
    SelfNormalizedResets,
)
from sb3_plasticity.mitigations.registry import find_mitigation, make_mitigations, names
from sb3_plasticity.mitigations.resets import FIRE, LayerReset, OptimizerReset, ShrinkHead

__all__ = [
    "FIRE",
    "ChurnReduction",
    "FeatureNorm",
    "L2Init",
    "Parseval",
    "RankAscent",
    "RegenerativeWasserstein",
    "SpectralRegularization",
    "L2",
    "Agent",
    "Attachment",
    "CReLU",
    "EffectiveRank",
    "FourierFeatures",
    "LayerNormReLU",
    "LayerNormTanh",
    "LayerReset",
    "Mitigation",
    "MitigationCallback",
    "OptimizerReset",
    "PlasticityInjection",
    "ShrinkHead",
    "attached",
    "attachments_of",
    "find_mitigation",
    "make_mitigations",
    "mitigate",
    "names",
    "TRAC",
    "UPGD",
    "MuonAdam",
    "CalibratedPartialResets",
    "ContinualBackprop",
    "ReDo",
    "ReGraMa",
    "SelfNormalizedResets",
    "NormalizeAndProject",
    "SelectiveWeightReinit",
    "ShrinkAndPerturb",
    "WeightClipping",
]
