"""The models that ship with the library; each folder is a model folder."""
