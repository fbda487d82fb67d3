"""Typed settings of training runs, and the named recipes."""
