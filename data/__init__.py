"""Dialogues in, examples out: reading, speakers, splitting, prompt, sample corpus."""
