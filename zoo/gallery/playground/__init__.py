"""The playground: change a model's axes and sizes in the browser, and see its drawing and exact price.

Zoo's own pricing runs there, unmodified, in Pyodide (CPython for WebAssembly) within a web worker. `packing` zips what
pricing imports, `pyodide` finds Pyodide's files, `form_data` lists what the form offers, and `assembling` writes the
page with all that it loads. `live_price` and `yaml_edit` run within the page.
"""
