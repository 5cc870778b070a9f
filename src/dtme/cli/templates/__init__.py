"""Files that `dtme init` writes: each runs as it is, without a network, on a CPU in seconds.

- `like_timm`, `like_hf`, `like_torch`: a trunk of timm, of transformers, of torch alone.
"""
