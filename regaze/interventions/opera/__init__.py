from regaze.interventions.opera.method import OPERA, OperaAnswer

__all__ = ["OPERA", "OperaAnswer"]
