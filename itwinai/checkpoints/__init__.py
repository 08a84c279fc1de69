"""The portable checkpoint: one file that verifies or does not exist, and resumes under any strategy and world size.

``state`` says what is in it, ``portable_file`` how it is written and read, ``discovery`` which is the newest valid one,
``checkpoint_io`` puts all that where Lightning saves and loads, ``convert`` makes other formats of it.
"""
