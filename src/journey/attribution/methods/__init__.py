"""One file per family of methods; each gives float32 scores[damping, step, query, train], positive = proponent."""
