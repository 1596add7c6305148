"""The command line, one file a command.

Command modules import no torch, pandas or Rich when they are loaded, so that ``robench --help``
answers at once; the bodies of the commands import what they use.
"""
