"""Images and labels, in both hosts.

``listing`` says which files and folders count, ``images`` opens one, ``loader`` checks shared
memory before worker processes start, ``datasets`` and ``transforms`` are those of the standalone
host, ``solo_learn`` and ``dali`` apply these rules inside solo-learn, and ``resident`` makes views
on the device.
"""
