"""What files of sound and pictures look like inside: one module a format, or a few that are alike."""
