"""Prompts: captions cleaned, words to ids, ids to features; and the files that hold prompts or features.

Importing any of it needs numpy alone: `tokenizers`, `ftfy` and `beautifulsoup4` (`arforge[text]`) are loaded when a
prompt is text.
"""
