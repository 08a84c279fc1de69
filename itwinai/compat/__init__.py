"""The only modules that touch private names of other libraries.

There is a file per library, and a test per name in ``tests/compat``. When a release moves something, it is mended here
and nowhere else. Lightning's names are many: they have a file per theme. This package imports none of its modules, so
that what needs one library does not load the others.
"""
