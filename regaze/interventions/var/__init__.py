from regaze.interventions.var.method import VAR

__all__ = ["VAR"]
