from regaze.interventions.paint.method import PAINT

__all__ = ["PAINT"]
