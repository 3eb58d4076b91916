"""Fine-tuning for a domain: a LoRA adapter from somebody's own conversations, as PEFT keeps adapters."""
