"""Run directories, manifests, tables and tensors: whole, checked and traceable, or refused.

How files are written, whatever is in them; what a stage's files are called is known in ``stores/``. To add a
format of file, write its atomic writer and its checking reader in a module here.
"""
