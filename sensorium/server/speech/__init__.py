"""The doors of speech: text read aloud, voices, and what spoken answers of the other doors share."""
