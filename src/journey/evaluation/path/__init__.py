"""Along the path: attributions and estimates of neighbouring and of distant steps of a journey."""
