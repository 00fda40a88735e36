"""Components of a model, one file or folder for each axis (kind of component), and the towers that are built of
them."""

from zoo.spec.kinds import Kinds

Kinds.searched.add(__name__)
