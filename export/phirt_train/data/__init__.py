"""What stages read: JSON lines and the media that they name, as token ids, pixels and frames."""
