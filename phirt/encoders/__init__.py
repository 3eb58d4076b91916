"""From files and pictures to what the encoders take. Each module knows one modality and no session."""
