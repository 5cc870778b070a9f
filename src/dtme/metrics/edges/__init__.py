"""Edge maps of one image, as odsF needs them.

- `boundaries`: boundaries between the regions of a map.
- `suppression`: suppression of what is no maximum across an edge.
- `thinning`: lines one pixel wide.
- `matching`: one-to-one matching of predicted with true edge pixels.
- `_kernels`: the loops over pixels, compiled by numba.
"""
