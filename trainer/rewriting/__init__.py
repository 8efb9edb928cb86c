"""Trains the rewrite model: what it reads, its bases, its losses, its trainer."""
