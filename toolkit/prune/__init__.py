"""Structured pruning of ResNets for latency, from unlabelled images."""
