"""Read a model's YAML node into its Spec, and write a Spec or a composed model as plain data again."""

from zoo.grammar.contract import contract, contract_choices, find_names
from zoo.grammar.dialect import expand, is_slot
from zoo.grammar.hints import hint_keys
from zoo.grammar.interpolation import call_resolvers, resolve
from zoo.grammar.keys import AXES, BOTH, DIMS, OWN, STRUCTURE, TOWERS
from zoo.grammar.leftovers import drop_leftovers
from zoo.grammar.parsing import to_spec, to_tree
from zoo.grammar.plain import from_dict, to_body, to_dict, to_essentials
