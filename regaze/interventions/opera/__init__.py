from regaze.interventions.opera.method import OPERA

__all__ = ["OPERA"]
