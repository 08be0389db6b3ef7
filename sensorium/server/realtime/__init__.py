"""WebSocket /v1/realtime: conversations in OpenAI's Realtime events, and transcription in vLLM's."""
