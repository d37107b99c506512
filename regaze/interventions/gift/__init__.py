from regaze.interventions.gift.calibration import find_saliency_layer, layer_shifts
from regaze.interventions.gift.method import GIFT
from regaze.interventions.gift.shift_map import gaze_shift_map

__all__ = ["GIFT", "find_saliency_layer", "gaze_shift_map", "layer_shifts"]
