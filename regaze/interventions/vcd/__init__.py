from regaze.interventions.vcd.method import VCD

__all__ = ["VCD"]
