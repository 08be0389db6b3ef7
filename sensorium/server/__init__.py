"""The HTTP side: validation at the edge, everything else through EngineClient."""
