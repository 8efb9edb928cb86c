"""Adapters for LangChain and others; each module needs its own extra."""
