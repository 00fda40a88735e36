"""Make the playground: change a model's axes and sizes in the browser, and see the drawing and exact price.

Zoo's own pricing runs there, unmodified, in Pyodide (CPython for WebAssembly) within a web worker. `packing` zips the
modules that pricing imports, `pyodide` finds Pyodide's files, `form_data` lists the choices of the form, and
`assembling` writes the page with all files that it loads. `live_price` and `yaml_edit` run within the page.
"""
