"""Contracts of the stages: what each writes and the next ones read, typed, with one JSON form each."""
