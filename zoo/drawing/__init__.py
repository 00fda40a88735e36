"""Draw architectures from their Specs: the contents as a tree, the layout as a scene, and files."""
