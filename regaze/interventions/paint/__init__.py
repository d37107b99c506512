from regaze.interventions.paint.method import ImbalancedAttention

__all__ = ["ImbalancedAttention"]
