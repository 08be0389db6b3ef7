"""Names that callers of vLLM import from here."""
