"""An OpenAI-compatible server with the guard in front of any LLM; needs the proxy extra."""
