"""In the process of vLLM's scheduler: second contexts run beside their requests, failed requests end."""
