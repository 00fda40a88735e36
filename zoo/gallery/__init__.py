"""Make the gallery: a static site of models, axes and findings, from the grammar, prices and verdicts.

`model_facts` and `axis_facts` collect plain data; `site` fills the templates with it. A page loads nothing from a
network, and needs no server.
"""
