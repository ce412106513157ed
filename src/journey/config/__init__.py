"""All settings of a run, their composition by Hydra, and the checks made before any compute."""
