"""What makes criu's dump fail by itself, or lose something without a word. Pure, one file a kind."""
