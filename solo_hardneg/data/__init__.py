"""Images on disk, in both hosts: which files are images, how they are opened, how they are loaded.

``listing`` says which files and folders count, ``images`` opens one, ``loader`` checks shared
memory before worker processes start, and ``solo_learn`` puts these rules into solo-learn's loaders.
"""
