"""Media files and the fields made from them: audio files and the mel front end."""
