"""Builds backbones and reads checkpoints."""
