// Compiles, under Node, the modules of two zips to bytecode of Pyodide's Python: ours, and its standard library without
// what no price imports. Called with one argument, JSON: the folder of Pyodide, the zip, the
// folder to write to, and the lock file's contents.
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const { pyodide, packed, out, lock } = JSON.parse(process.argv[2]);
const { loadPyodide } = await import(pathToFileURL(join(pyodide, "pyodide.mjs")));
const python = await loadPyodide({ indexURL: pyodide, lockFileContents: lock, packageBaseUrl: "." });

const PROGRAM = `
import importlib._bootstrap_external as external, importlib.util, zipfile

LEFT_OUT = set("""
_pydatetime _pydecimal _pyio _pyrepl cProfile compileall curses doctest ensurepip ftplib idlelib imaplib lib2to3 mailbox
modulefinder multiprocessing nntplib optparse pdb pickletools poplib profile pstats pyclbr pydoc pydoc_data smtplib
sqlite3 tabnanny telnetlib test tkinter trace turtle unittest venv wsgiref xml xmlrpc zipapp
""".split())

def compile_zip(source, target, place, left_out=frozenset()):
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            if name.endswith("/") or name.partition("/")[0].removesuffix(".py") in left_out:
                continue
            data = old.read(name)
            if name.endswith(".py"):
                code = compile(data, place + name, "exec", dont_inherit=True)
                data = bytes(external._code_to_hash_pyc(code, importlib.util.source_hash(data), False))
                name += "c"
            new.writestr(name, data)

compile_zip("/packed.zip", "/packed-out.zip", "")
compile_zip("/stdlib.zip", "/stdlib-out.zip", "/lib/python314.zip/", LEFT_OUT)
`;

python.FS.writeFile("/packed.zip", readFileSync(packed));
python.FS.writeFile("/stdlib.zip", readFileSync(join(pyodide, "python_stdlib.zip")));
python.runPython(PROGRAM);
writeFileSync(join(out, "zoo.zip"), python.FS.readFile("/packed-out.zip"));
writeFileSync(join(out, "python_stdlib.zip"), python.FS.readFile("/stdlib-out.zip"));
