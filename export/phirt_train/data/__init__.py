"""What the stages read: tokenised text, pictures, recordings, and examples that are made here."""
