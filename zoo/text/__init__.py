"""Text in, text out: prompts, conversations and masks to token ids, and the engine's tokens back to text."""
