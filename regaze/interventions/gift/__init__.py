from regaze.interventions.gift.method import GIFT

__all__ = ["GIFT"]
