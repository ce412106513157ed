"""Every setting with its default, and every check made before any compute: the door between Hydra and plain Python."""
