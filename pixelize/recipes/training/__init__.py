"""How recipes train: settings, loop, resuming, several processes, results."""
