"""The components of a model, an axis a file or a folder, and the towers that are built of them."""

from zoo.spec.kinds import Kinds

Kinds.searched.add(__name__)
