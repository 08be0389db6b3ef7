"""What LLM is made of."""
