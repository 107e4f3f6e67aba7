"""The configs that a user names, importable as ``solo_hardneg.configs`` (``pkg://`` for Hydra)."""
