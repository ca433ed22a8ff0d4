"""Kinds of applications, one file each."""
