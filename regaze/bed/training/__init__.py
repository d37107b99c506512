"""How the bed is made and measured: conversations, adapter, figures."""
