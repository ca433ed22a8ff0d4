"""edgeship: ResNets pruned, quantized to INT8, compiled, deployed and reported honestly."""
