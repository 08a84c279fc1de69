"""The portable checkpoint: one file that verifies or does not exist, and resumes under any strategy and world size.

``content`` says what is in it, ``file`` how it is written and read, ``find`` which is the newest valid one, ``plugin``
puts all that where lightning saves and loads, ``convert`` makes other formats of it.
"""
