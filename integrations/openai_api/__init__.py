"""The wire format of OpenAI's API, read and written: for guarded clients and for the proxy."""
