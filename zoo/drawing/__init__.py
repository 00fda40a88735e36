"""Draw architectures from their Specs alone: the contents (a tree), their places (a scene), and files."""
