"""Where requests come from and are admitted: the server, engines without one, and admission."""
