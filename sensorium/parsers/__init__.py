"""How models write tool calls and reasoning: text in, piece by piece; content, calls and reasoning out."""
