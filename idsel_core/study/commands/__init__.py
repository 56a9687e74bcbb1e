"""The commands of ``idsel``, one module each: `add_arguments` says what it takes, `run` does it.

Nothing heavy is imported at the top of these modules, so that ``idsel --help`` answers at once.
"""
