"""Prove that an application feeds the network the pixels of the calibration, or name the fault that it has.

`pixels` and `faults` are the catalogue, `pipeline` predicts the outputs under a fault, `golden` makes the
images, `answers` reads the outputs of the application, `diagnosis` decides, `proof` has the whole.
"""
