from regaze.interventions.spin.method import SPIN

__all__ = ["SPIN"]
