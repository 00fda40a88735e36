"""Chat data: render conversations with a template, encode the answers, and batch them."""
