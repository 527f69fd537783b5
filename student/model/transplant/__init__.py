"""Students that begin as their teacher: its decoder layers, with a recurrence where attention was."""
