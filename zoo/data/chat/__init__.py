"""Chat data: templates, conversations as text, the answers in them as tokens, and rows of them."""
