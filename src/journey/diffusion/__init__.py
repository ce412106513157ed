"""How each artifact is made: a file for each stage, load → compute → save, read from top to bottom.

A stage is `make(spec, partial, workspace)`: it leaves the payload in the directory `partial` and may return facts for the
manifest, as JSON. What an interrupted run continues from is kept by `journey.artifacts.resume`.
"""
