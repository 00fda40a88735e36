"""Recipes: experiments whose expectation is written down before they run, and whose verdict is kept."""
