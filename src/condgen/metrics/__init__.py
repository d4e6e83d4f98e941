"""Measures of generated images beside what real images reach, each a plain function with its source.

- :mod:`condgen.metrics.measures`: value, floor and interval of any function of two sets
- :mod:`condgen.metrics.fidelity`: FID, KID, precision, recall, density, coverage, diversity, sharpness
- :mod:`condgen.metrics.labels`: truth to the label
- :mod:`condgen.metrics.reconstruction`: reconstruction and likelihood
- :mod:`condgen.metrics.latents`: active latents, aggregate posterior against prior
- :mod:`condgen.metrics.privacy`: near copies, membership attack
- :mod:`condgen.metrics.usefulness`: what a classifier learns from the images
"""
