"""Installer that updates carry: it drives the agent on its own device (Python 3.8, standard library)."""
