"""A trained model at work: files of dialogues, an exported folder, a page."""
